"""AsyncEngine: an engine in a thread of its own, for coroutines that add requests and read their tokens."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Hashable
from typing import Any

from tokenspeed.completion import Delta
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.row import Row


class EngineDead(RuntimeError):
    """The engine's thread has ended: by an error, which is the cause, or because it was closed."""


class _Waiter:
    """Who reads a request's tokens, in which event loop."""

    def __init__(self):
        self._loop, self._items = asyncio.get_running_loop(), asyncio.Queue()

    def tell(self, item: Any) -> None:
        """From the engine's thread; nothing happens where the loop is gone."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def next(self) -> Any:
        item = await self._items.get()
        if isinstance(item, BaseException):
            raise item
        return item


class AsyncEngine:
    """Runs an engine in a thread, which ends with `close` or with the first step that fails.

    Args:
        engine: whose only user this is from now on.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._waiters: dict[Hashable, tuple[Row, _Waiter]] = {}
        self._orders: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._end: EngineDead | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stream(self, id: Hashable, row: Row, *, priority: int = 0) -> AsyncIterator[Delta]:
        """Generates a row's tokens and yields them as they come; the last Delta has the Completion.

        An iterator that is closed or dropped before its end aborts the request.

        Raises:
            ValueError: the request can never fit, or the id is under way. EngineDead: the engine has ended.
        """
        waiter = _Waiter()

        def add():
            try:
                if self._end is not None:
                    raise self._end
                if id in self._waiters:
                    raise ValueError(f"id: expected one that is not under way, got {id!r}")
                self._engine.add(id, row, priority=priority)
            except (ValueError, EngineDead) as error:
                waiter.tell(error)
            else:
                self._waiters[id] = row, waiter
                waiter.tell(None)

        self._order(add)
        await waiter.next()
        try:
            while True:
                delta = await waiter.next()
                yield delta
                if delta.completion is not None:
                    return
        finally:
            self._order(lambda: self._drop(id, waiter), quietly=True)

    def abort(self, id: Hashable) -> None:
        """Ends a request, in any state; its iterator raises `asyncio.CancelledError`. Unknown ids are let pass."""

        def end():
            found = self._waiters.get(id)
            if found is not None:
                self._drop(id, found[1])
                found[1].tell(asyncio.CancelledError(f"request {id!r} was aborted"))

        self._order(end)

    def close(self) -> None:
        """Ends the thread; whoever waits gets `EngineDead`."""
        with self._changed:
            self._end = self._end or EngineDead("the engine was closed")
            self._changed.notify()
        self._thread.join()

    def _order(self, order: Callable[[], None], *, quietly: bool = False) -> None:
        """Has the engine's thread do something before its next step."""
        with self._changed:
            if self._end is None:
                self._orders.append(order)
                self._changed.notify()
            elif not quietly:
                raise self._end

    def _drop(self, id: Hashable, waiter: _Waiter) -> None:
        if self._waiters.get(id, (None, None))[1] is waiter:
            del self._waiters[id]
            if self._end is None:
                self._engine.cancel(id)

    def _run(self) -> None:
        try:
            while self._wait():
                for id, row in self._engine.step():
                    self._tell(id, row)
        except BaseException as error:
            dead = EngineDead(f"the engine ended: {error}")
            dead.__cause__ = error
        else:
            dead = None
        with self._changed:
            self._end = dead or self._end
            orders, self._orders = self._orders, []
        for order in orders:
            order()
        for _, waiter in self._waiters.values():
            waiter.tell(self._end)

    def _wait(self) -> bool:
        """Until there is something to do, which orders are done with; False at the end."""
        with self._changed:
            while self._end is None and not self._orders and self._engine.is_idle:
                self._changed.wait()
            if self._end is not None:
                return False
            orders, self._orders = self._orders, []
        for order in orders:
            order()
        return True

    def _tell(self, id: Hashable, row: Row) -> None:
        if id not in self._waiters:
            return
        (_, waiter), (text, ids) = self._waiters[id], row.news()
        done = row.completion() if row.reason is not None else None
        if done is not None:
            del self._waiters[id]
        if text or ids or done is not None:
            waiter.tell(Delta(text=text, token_ids=ids, completion=done))
