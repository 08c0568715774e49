"""What the kernels do beyond computing, each of which can be left out to see what it gives."""

import contextlib
import contextvars
from collections.abc import Iterator

LEVERS = ("pipeline_loop", "prefetch_l2", "launch_dependents", "multiply_add", "weighted_norm", "tuned_tiles")
"""The four hooks by their names, RMSNorm in two halves (`weighted`), and the tiles that a sweep found."""

_left_out: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("left_out", default=frozenset())


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Kernels that are traced within it do without these levers: other times, the same results but for roundings.

    Part of the cache key of each public function, so it needs no clearing of caches.
    """
    for name in names:
        if name not in LEVERS:
            raise ValueError(f"levers: expected some of {', '.join(LEVERS)}, got {name!r}")
    token = _left_out.set(_left_out.get() | frozenset(names))
    try:
        yield
    finally:
        _left_out.reset(token)


def left_out() -> frozenset[str]:
    return _left_out.get()


def used(name: str) -> bool:
    """Whether kernels that are traced now have this lever."""
    return name not in _left_out.get()
