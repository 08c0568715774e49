"""One process at a time: who holds a file says so beside it, and every other is refused at once."""

import contextlib
import datetime
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock

from experiments.bench.errors import ResultsError
from experiments.bench.options import shown_command


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Within it no other process holds the file; a process that ends, in whatever way, holds nothing.

    The lock is on `PATH.lock`, where the holder writes who it is.

    Raises:
        ResultsError: another process holds the file, or the lock cannot be made.
    """
    target = path.resolve()  # by whatever name it is opened
    beside = target.with_name(f"{target.name}.lock")
    # A lock that is a mere file would outlive a process that is killed: where the system has no other there is none.
    lock = filelock.FileLock(beside, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ResultsError(f"{path}: {_holder(beside)} writes to it; try again when that has ended") from None
    except OSError as error:
        raise ResultsError(f"{beside}: {error.strerror or error}") from None
    try:
        beside.write_text(f"{_this_process()}\n")
        yield
    finally:
        beside.unlink(missing_ok=True)  # while it is held: who opened it before finds that it is gone, and has no lock
        lock.release()


def _this_process() -> str:
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    command = " ".join(shown_command(sys.orig_argv).split())
    return f"process {os.getpid()} on {socket.gethostname()} ({command}, since {since})"


def _holder(beside: Path) -> str:
    try:
        said = beside.read_text(errors="replace").strip()
    except OSError:
        said = ""
    return said or "another process"
