"""Ends the command where a launch hangs that has no limit of its own: the host can only leave it."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

HUNG = 3
"""Exit status."""


@contextlib.contextmanager
def watching(seconds: float, hung: Callable[[], None]) -> Iterator[None]:
    """Within it: after so many seconds `hung` is called and the process ends."""

    def end() -> None:
        try:
            hung()
        finally:
            sys.stdout.flush()
            os._exit(HUNG)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
