"""What JAX compiles, counted: a time that has a compilation in it is no time of a kernel."""

import contextlib
from collections.abc import Iterator

from jax import monitoring

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
