"""Measurements: the tile sweep, the layer benchmark, the report made from their results."""

import os
import signal
import sys
from typing import Any


def leave(*_: Any) -> None:
    """Ends the process at once, as Control-C does before a command has begun, with the status that shells know."""
    os._exit(128 + signal.SIGINT)


if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # This is `python -m experiments.NAME`, which now imports for seconds: there is nothing to lose, and a traceback
    # from the midst of that says nothing. The command takes over when it begins.
    signal.signal(signal.SIGINT, leave)
