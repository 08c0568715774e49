"""How a command ends that is interrupted, or that nobody reads any more: quietly, with the status that shells know."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable

import experiments
from experiments.bench.interrupts import raise_interrupt
from tokenspeed.exit_status import INTERRUPTED, UNREAD

FAILED = 1


def ended(run: Callable[[], int]) -> int:
    """The exit status of a command: what `run` returns, or one of the above after a line about it or, unread, none."""
    alone = signal.getsignal(signal.SIGINT) is experiments.leave  # this process has nothing else to do
    if alone:
        signal.signal(signal.SIGINT, raise_interrupt)
    status = _status(run)
    if alone and status == INTERRUPTED:
        # Threads of XLA may be compiling or running: Python would wait for them as it ends, or abort in their midst.
        os._exit(status)
    return status


def _status(run: Callable[[], int]) -> int:
    try:
        try:
            return run()
        except KeyboardInterrupt as error:
            print("\nInterrupted.", *getattr(error, "__notes__", ()), file=sys.stderr)
            return INTERRUPTED
        finally:
            for stream in _streams():
                stream.flush()  # or Python would find as it ends that nobody reads, and say so
    except BrokenPipeError:
        _discard_output()
        return UNREAD
    except OSError as error:  # a file or the output itself cannot be read or written
        where = f"{error.filename}: " if error.filename else ""
        with contextlib.suppress(OSError):
            print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        _discard_output()
        return FAILED


def _discard_output() -> None:
    """What is still in buffers goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in _streams():
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _streams() -> list:
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
