"""Control-C where an exception may be raised."""

import signal
import threading
from types import FrameType

LOWERING = ("jax._src.interpreters.mlir", "jax._src.pallas", "jaxlib.mlir")
"""Modules that MLIR calls from C++ that takes no exception: a KeyboardInterrupt there would abort the process."""
AGAIN_S = 0.05


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """A handler of SIGINT, in place of Python's: a KeyboardInterrupt, which waits while JAX lowers."""
    if _within(LOWERING, frame):
        again = threading.Timer(AGAIN_S, signal.pthread_kill, (threading.main_thread().ident, number))
        again.daemon = True
        again.start()
    else:
        signal.default_int_handler(number, frame)


def _within(modules: tuple[str, ...], frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(modules):
            return True
        frame = frame.f_back
    return False
