"""How late this process's event loop is: a client that is busy itself measures itself."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

EVERY_S = 0.005


@contextlib.asynccontextmanager
async def watched() -> AsyncGenerator[list[tuple[float, float]]]:
    """A list that grows by (when, how many ms later than asked it woke) while the context is entered."""
    found: list[tuple[float, float]] = []

    async def watch() -> None:
        while True:
            due = time.perf_counter() + EVERY_S
            await asyncio.sleep(EVERY_S)
            now = time.perf_counter()
            found.append((now, 1e3 * (now - due)))

    task = asyncio.create_task(watch())
    try:
        yield found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
