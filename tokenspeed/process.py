"""The command line as a process: how it ends, and what it keeps for the next one. A library does none of this."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from typing import NoReturn

from tokenspeed.exit_status import INTERRUPTED

CACHE_BYTES = 2**31
"""Of compiled programs, at most; those that were not used for the longest time go first."""


def run() -> NoReturn:
    """Runs the command and ends the process with its status."""
    end_at_interrupt()
    keep_compiled_programs()
    try:
        from tokenspeed.cli import main

        status = main()
    except SystemExit as end:  # of --help and --version
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)  # an exit that unloads Python under the threads of XLA, which may be at work, can abort


def end_at_interrupt() -> None:
    """Control-C ends the process at once, also while Python is being imported or XLA computes, when Python waits.

    What was written is written; a thread waits for the signal in place of the main one, which may be deep in XLA.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or not hasattr(signal, "sigwait"):
        return  # ignored, as in the background of a script; or Windows

    def wait() -> None:
        signal.sigwait({signal.SIGINT})
        os._exit(INTERRUPTED)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=wait, daemon=True).start()


def keep_compiled_programs() -> None:
    """Switches on JAX's persistent cache of compiled programs, in the user's cache folder; before JAX is imported.

    JAX_COMPILATION_CACHE_DIR puts it elsewhere, JAX_ENABLE_COMPILATION_CACHE=false switches it off. Where the folder
    cannot be written there is no cache.
    """
    import platformdirs  # here, since until `end_at_interrupt` Control-C is a traceback

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = platformdirs.user_cache_path("tokenspeed", appauthor=False) / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(CACHE_BYTES))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")  # a model is many small programs
