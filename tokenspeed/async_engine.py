"""AsyncEngine: an engine in a thread of its own, for coroutines that add requests and read their tokens."""

import asyncio
import contextlib
import dataclasses
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from typing import Any

from tokenspeed.completion import Completion, Delta
from tokenspeed.engine.build import for_serving
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.input_processor import InputProcessor, Prompt
from tokenspeed.engine.row import Row
from tokenspeed.engine.runner import Runner
from tokenspeed.llm import LLM
from tokenspeed.sampling.params import SamplingParams

LOOK_S = 0.5e-3
"""How often it is looked whether a step that was taken to last longer has ended."""


class EngineDead(RuntimeError):
    """The engine's thread has ended: by an error, which is the cause, or because it was closed."""


class Aborted(RuntimeError):
    """The request was ended by `AsyncEngine.abort`."""


class _Request:
    """Who reads a request's tokens, in which event loop; and its samples that have not ended."""

    def __init__(self, id: Hashable, rows: list[Row]):
        self.id, self.rows = id, rows
        self.left: dict[Hashable, Row] = {}
        self.loop, self.items = asyncio.get_running_loop(), asyncio.Queue()

    async def next(self) -> Any:
        item = await self.items.get()
        if isinstance(item, BaseException):
            raise item
        return item


class _Outbox:
    """What the engine's thread has for readers. It goes out at once for all: waking an event loop costs more than what
    a reader is told."""

    def __init__(self):
        self._items: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue, Any]]] = {}

    def tell(self, request: _Request, item: Any) -> None:
        self._items.setdefault(request.loop, []).append((request.items, item))

    def send(self) -> None:
        """Nothing happens to what is for a loop that is gone."""
        items, self._items = self._items, {}
        for loop, some in items.items():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._put, some)

    @staticmethod
    def _put(items: list[tuple[asyncio.Queue, Any]]) -> None:
        for queue, item in items:
            queue.put_nowait(item)


class AsyncEngine:
    """Serves a model: runs an engine in a thread, which ends with `close` or with the first step that fails.

    All programs are compiled and run once before the first request; none is compiled afterwards.

    Args:
        llm: whose model, tokenizer and options these are. The pool of keys and values is the engine's own.
        progress: show a bar on standard error while programs are compiled.
        runner: `Runner`, or a class of such that stand in for the device.

    Raises:
        ValueError, NotEnoughMemory: as `LLM.generate`.
    """

    def __init__(self, llm: LLM, *, progress: bool = False, runner: Callable[..., Runner] = Runner):
        self._engine = for_serving(llm.model, llm.options, progress=progress, runner=runner)
        self._inputs = InputProcessor(llm.model.config, llm.tokenizer, llm.max_context)
        self._requests: dict[Hashable, _Request] = {}
        self._samples: dict[Hashable, _Request] = {}
        self._orders: deque[Callable[[], None]] = deque()
        self._outbox = _Outbox()
        self._changed = threading.Condition()
        self._why: Callable[[], EngineDead] | None = None
        self._begun: float | None = None
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def engine(self) -> Engine:
        """To be looked at only: its pool's and its scheduler's counts."""
        return self._engine

    @property
    def is_dead(self) -> bool:
        return self._why is not None

    @property
    def silent_s(self) -> float:
        """Seconds for which it has had something to do and has not come to it; 0 where it has nothing to do."""
        return 0.0 if self._begun is None else time.monotonic() - self._begun

    async def stream(
        self, id: Hashable, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0
    ) -> AsyncIterator[Delta]:
        """Generates and yields tokens as they come; the last Delta of each sample has its Completion.

        An iterator that is closed or dropped before its end aborts the request.

        Args:
            id: unlike that of any other request under way. prompt: text or token ids.
            params: how its tokens are drawn. priority: lower runs first.

        Raises:
            ValueError, TypeError: the prompt or the params cannot be run, it can never fit, or the id is under way.
            FloatingPointError: the model's logits are not finite. Aborted: by `abort`.
            EngineDead: the engine has ended.
        """
        hash(id)  # or it is no id
        rows = self._inputs.rows(0, prompt, SamplingParams() if params is None else params)
        request = _Request(id, rows)
        self._order(lambda: self._add(request, priority))
        try:
            await request.next()
            ended = 0
            while ended < len(rows):
                delta = await request.next()
                ended += delta.completion is not None
                yield delta
        finally:
            self._order(lambda: self._drop(request), quietly=True)

    async def generate(
        self, id: Hashable, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0
    ) -> Completion:
        """As `stream`, whose arguments and errors these are; the whole of it, with all samples."""
        found: dict[int, Completion] = {}
        async for delta in self.stream(id, prompt, params, priority=priority):
            if delta.completion is not None:
                found[delta.sample] = delta.completion
        samples = [found[i] for i in sorted(found)]
        return dataclasses.replace(samples[0], samples=samples)

    def abort(self, id: Hashable) -> None:
        """Ends a request, in any state; its iterator raises `Aborted`. Unknown ids are let pass."""

        def end():
            if (request := self._requests.get(id)) is not None:
                self._drop(request)
                self._outbox.tell(request, Aborted(f"request {id!r} was aborted"))

        self._order(end, quietly=True)

    def close(self) -> None:
        """Ends the thread and waits for the device; whoever waits gets `EngineDead`."""
        with self._changed:
            self._why = self._why or (lambda: EngineDead("the engine was closed"))
            self._changed.notify()
        self._thread.join()

    def _order(self, order: Callable[[], None], *, quietly: bool = False) -> None:
        """Has the engine's thread do something before its next step."""
        with self._changed:
            if self._why is None:
                self._orders.append(order)
                self._changed.notify()
            elif not quietly:
                raise self._why()

    def _add(self, request: _Request, priority: int) -> None:
        """Tells the request None, or what is wrong with it, and then nothing of it is there."""
        try:
            if self._why is not None:
                raise self._why()
            if request.id in self._requests:
                raise ValueError(f"id: expected one that is not under way, got {request.id!r}")
            try:
                for row in request.rows:
                    sample = next(self._numbers)
                    self._engine.add(sample, row, priority=priority, leader=next(iter(request.left), None))
                    request.left[sample] = row
            except BaseException:
                self._end(request)
                raise
            self._requests[request.id] = request
            self._samples |= dict.fromkeys(request.left, request)
            self._outbox.tell(request, None)
        except Exception as error:
            self._outbox.tell(request, error)

    def _drop(self, request: _Request) -> None:
        if self._requests.get(request.id) is request:
            del self._requests[request.id]
            self._end(request)

    def _end(self, request: _Request) -> None:
        """Cancels what is left of a request."""
        for sample in request.left:
            self._samples.pop(sample, None)
            if self._why is None:
                self._engine.cancel(sample)
        request.left.clear()

    def _run(self) -> None:
        try:
            while self._wait():
                for sample, row in self._engine.step():
                    self._tell(sample, row)
                self._outbox.send()
        except BaseException as error:
            reason, cause = f"the engine ended: {error or type(error).__name__}", error

            def why() -> EngineDead:
                dead = EngineDead(reason)
                dead.__cause__ = cause
                return dead

            self._why = why
        while self._orders:
            with contextlib.suppress(Exception):  # whoever waits is told what has happened
                self._obey()
        assert self._why is not None
        for request in self._requests.values():
            self._outbox.tell(request, self._why())
        self._outbox.send()
        with contextlib.suppress(Exception):  # what is wrong has been told
            self._engine.close()

    def _wait(self) -> bool:
        """Until there is something to do and it is time for it, which orders are done with; False at the end."""
        while True:
            with self._changed:
                while self._why is None and not self._orders and self._engine.is_idle:
                    self._begun = None
                    self._changed.wait()
                self._begun = time.monotonic()
                if self._why is not None:
                    return False
            self._obey()
            self._outbox.send()
            if (seconds := self._engine.hold_s()) <= 0:
                return True
            with self._changed:
                self._changed.wait_for(lambda: self._orders or self._why is not None, min(seconds, LOOK_S))

    def _obey(self) -> None:
        """Does what was ordered; where one thing fails, the others are still there."""
        while True:
            with self._changed:
                if not self._orders:
                    return
                order = self._orders.popleft()
            order()

    def _tell(self, sample: Hashable, row: Row) -> None:
        request = self._samples.get(sample)
        if request is None:
            return
        if row.reason is None:
            if (delta := row.news()) is not None:
                self._outbox.tell(request, delta)
            return
        del self._samples[sample], request.left[sample]
        try:
            whole = row.completion()
        except FloatingPointError as error:
            self._drop(request)
            self._outbox.tell(request, error)
            return
        self._outbox.tell(request, row.news(whole))
        if not request.left:
            self._requests.pop(request.id, None)
