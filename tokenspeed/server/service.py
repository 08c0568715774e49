"""The service: a model that is being loaded, that serves, or that has failed, and the requests it has."""

import asyncio
import contextlib
import itertools
import secrets
import threading
from collections.abc import AsyncGenerator, Callable

from tokenspeed.async_engine import Aborted, AsyncEngine, EngineDead
from tokenspeed.completion import Delta
from tokenspeed.engine.engine import Engine
from tokenspeed.llm import LLM
from tokenspeed.messages import one_line
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.server.admission import Admission, Bounds
from tokenspeed.server.ceiling import Ceiling
from tokenspeed.server.compilations import Compilations
from tokenspeed.server.errors import ApiError, refused
from tokenspeed.text.tokenizer import Tokenizer

NOT_FINITE = "logits_not_finite"
"""The code of an error."""
LONGEST_NAME = 256
SILENT_S = 4.0
"""Seconds without a sign of a step after which an engine counts as stuck."""
RETRY_S = "5"
"""After which a client may ask again, while a model is loaded."""


class Service:
    """Loads a model in a thread of its own and serves it.

    Args:
        load: makes the model; it raises what is wrong. name: that requests may ask for.
        any_name: requests may ask for any other too. bounds: of the requests that it takes.
        ceiling: tells that of the device, before the model is loaded; None where nobody knows.

    Attributes:
        stage: what it is doing until it is ready. failure: why it never will be.
        when_failed: is called then, once, in any thread.
        ceiling: of the device, once it is known. compilations: since it was ready.
    """

    def __init__(
        self,
        load: Callable[[], LLM],
        *,
        name: str,
        any_name: bool,
        bounds: Bounds | None = None,
        ceiling: Callable[[], Ceiling | None] = lambda: None,
    ):
        self.when_failed: Callable[[], None] = lambda: None
        self.name, self.any_name = name, any_name
        self.admission = Admission(bounds or Bounds())
        self.stage = "not started"
        self.failure: BaseException | None = None
        self.ceiling: Ceiling | None = None
        self.compilations = Compilations()
        self._load, self._find_ceiling = load, ceiling
        self._llm: LLM | None = None
        self._engine: AsyncEngine | None = None
        self._numbers = itertools.count()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._start, name="loading", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the engine, and all requests with an error."""
        self._closed.set()
        if self._engine is not None:
            self.compilations.stop()
            self._engine.close()

    @property
    def why_not_ready(self) -> str | None:
        """In a line; None where it serves."""
        if self.failure is not None:
            what = "the model could not be loaded" if self._engine is None else "the engine has ended"
            return f"{what}: {one_line(self.failure)}"
        if self._engine is None:
            return f"the model is not ready: {self.stage}"
        if self._engine.is_dead:
            return "the engine has ended"
        if (silent := self._engine.silent_s) > SILENT_S:
            return f"the engine has not answered for {silent:.0f} s"
        return None

    @property
    def engine(self) -> Engine | None:
        """To be looked at only; None before it is ready."""
        return None if self._engine is None else self._engine.engine

    @property
    def llm(self) -> LLM:
        """
        Raises:
            ApiError: 503, it is not ready.
        """
        if (why := self.why_not_ready) is not None:
            raise ApiError(503, why, code="not_ready", headers={"Retry-After": RETRY_S})
        assert self._llm is not None
        return self._llm

    @property
    def tokenizer(self) -> Tokenizer:
        """
        Raises:
            ApiError: 503, or 400 where the folder has none.
        """
        if (found := self.llm.tokenizer) is None:
            raise ApiError(400, "the model's folder has no tokenizer")
        return found

    def check_name(self, name: str | None) -> str:
        """The name that an answer has.

        Raises:
            ApiError: 404, it is another's, or 400, it is too long for every event of a stream to have it.
        """
        if name is None or name == self.name:
            return self.name
        if not self.any_name:
            raise self.no_model(name)
        if len(name) > LONGEST_NAME:
            message = f"model: expected at most {LONGEST_NAME} characters, got {len(name)}"
            raise ApiError(400, message, param="model")
        return name

    def no_model(self, name: str) -> ApiError:
        """404: there is none of this name."""
        message = f"model: expected {self.name!r}, got {name[:100]!r}"
        return ApiError(404, message, param="model", code="model_not_found")

    def new_id(self, kind: str) -> str:
        return f"{kind}-{secrets.token_hex(12)}"

    async def stream(self, prompt: list[int], params: SamplingParams, priority: int) -> AsyncGenerator[Delta]:
        """As `AsyncEngine.stream`.

        Raises:
            ApiError: whatever goes wrong.
        """
        engine, id = self._ready_engine(), next(self._numbers)
        try:
            with self.admission.ticket(len(prompt)) as ticket:
                async for delta in engine.stream(id, prompt, params, priority=priority):
                    ticket.begun()
                    yield delta
        except (ValueError, TypeError) as error:
            raise refused(error) from error
        except FloatingPointError as error:
            raise ApiError(500, one_line(error), code=NOT_FINITE) from error
        except Aborted as error:
            raise ApiError(503, one_line(error)) from error
        except EngineDead as error:
            if error.__cause__ is None:  # it was closed
                raise ApiError(503, one_line(error)) from error
            self._fail(error.__cause__)
            raise ApiError(500, one_line(error)) from error

    def _ready_engine(self) -> AsyncEngine:
        assert self.llm is not None  # or it says why not
        assert self._engine is not None
        return self._engine

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
            self.when_failed()

    def _start(self) -> None:
        try:
            self.stage = "measuring the read ceiling"
            self.ceiling = self._find_ceiling()
            self.stage = "loading weights"
            llm = self._load()
            self.stage = "compiling"
            engine = AsyncEngine(llm)
        except BaseException as error:
            self._fail(error)
            return
        self._llm, self._engine = llm, engine
        self.stage = "ready"
        self.compilations.start()
        if self._closed.is_set():
            self.close()


async def merged(streams: list[AsyncGenerator[Delta]]) -> AsyncGenerator[tuple[int, Delta]]:
    """The deltas of several streams as they come, each with its stream's number; where one fails, all end, as they do
    where this is closed.

    Raises:
        What a stream does.
    """
    if len(streams) == 1:
        async with contextlib.aclosing(streams[0]) as stream:
            async for delta in stream:
                yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, Delta | BaseException | None]] = asyncio.Queue()

    async def read(number: int, stream: AsyncGenerator[Delta]) -> None:
        try:
            async for delta in stream:
                queue.put_nowait((number, delta))
            queue.put_nowait((number, None))
        except Exception as error:
            queue.put_nowait((number, error))

    tasks = [asyncio.create_task(read(i, stream)) for i, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            number, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
