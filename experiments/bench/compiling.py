"""Programs compiled side by side, and what JAX compiles, counted: a time with a compilation in it says nothing."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from jax import monitoring

LAUNCHED_ONE_BY_ONE = {"xla_gpu_enable_command_buffer": ""}
"""XLA's options for a program whose buffers are elsewhere at each call: it would record its launches into a CUDA graph
anew every time. What the engine runs is recorded, since its buffers stay."""
COMPILE_EVENTS = "/jax/core/compile/"
"""Of tracing, lowering and XLA's own compilation."""


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """Within it the list grows by the name of every event of JAX's compiler; of programs that are compiled, by none."""
    seen: list[str] = []

    def listen(event: str, duration: float, **_) -> None:
        del duration
        if event.startswith(COMPILE_EVENTS):
            seen.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        monitoring.unregister_event_duration_listener(listen)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compile_all[Compiled](thunks: Iterable[Callable[[], Compiled]], workers: int = 0) -> list[Compiled]:
    """Runs them in threads (XLA compiles without holding Python's lock) and waits for all; 0 workers is one a core."""
    pool = ThreadPoolExecutor(workers or cores())
    futures: list[Future] = []
    try:
        futures = [pool.submit(thunk) for thunk in thunks]
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
