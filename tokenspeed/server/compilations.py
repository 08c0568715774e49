"""Compilations: programs that XLA makes in this process, of which a server that is ready should make none."""

from jax import monitoring

EVENT = "/jax/core/compile/backend_compile_duration"
"""Of a program that XLA compiles, or that JAX reads from its cache; programs that are there give none."""


class Compilations:
    """Counts them from `start` to `stop`.

    Attributes:
        count: so far.
    """

    def __init__(self):
        self.count, self._counts = 0, False

    def start(self) -> None:
        self._counts = True
        monitoring.register_event_duration_secs_listener(self._listen)

    def stop(self) -> None:
        """Nothing happens where it does not count."""
        counts, self._counts = self._counts, False
        if counts:
            monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        self.count += event == EVENT
