"""A file of results: one record a line, appended as it comes, so that an interruption loses nothing."""

import contextlib
import itertools
import json
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from experiments.bench import lock, record
from experiments.bench.errors import ResultsError
from experiments.bench.interrupts import raise_interrupt
from experiments.bench.record import Record

RESULTS = Path(__file__).resolve().parents[1] / "results"
"""What is committed."""


MOST_LINE_BYTES = 1 << 20
"""A record has a few thousand: what has no end within this is no results file."""
BEGINNINGS = tuple(json.dumps(dict(kind=kind))[:-1].encode() for kind in record.KINDS)


def read(path: str | Path) -> list[Record]:
    """The records of a file; [] where there is none. A half-written last one is left out.

    Raises:
        ResultsError: it cannot be read, is no file of records, or a record is not as it should be.
    """
    path = Path(path)
    with _failing(path):
        if not _is_there(path):
            return []
        with open(path, "rb") as file:
            return _parse(file, path)[0]


@contextlib.contextmanager
def _failing(path: Path) -> Iterator[None]:
    """What the system refuses within it is a ResultsError."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror or error}") from None


def _is_there(path: Path) -> bool:
    """Whether there is such a file. A device may be read for ever, a pipe waits for its writer: they are refused."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise ResultsError(f"{path}: expected a file of results, not {what}")
    return True


def _parse(file: BinaryIO, path: Path) -> tuple[list[Record], int, bool]:
    """The records, the bytes that hold them, and whether the last of them lacks its newline."""
    records, used = [], 0
    for number in itertools.count(1):
        line = file.readline(MOST_LINE_BYTES)
        if not line:
            break
        ended = line.endswith(b"\n")
        if line.strip():
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                if not ended and _cut_short(line):
                    break
                raise ResultsError(f"{path}:{number}: expected a record, a JSON object, got {_shown(line)}") from None
            records.append(record.check(found, f"{path}:{number}"))
        used += len(line)
        if not ended:
            return records, used, True
    return records, used, False


def _cut_short(line: bytes) -> bool:
    """Whether it is the beginning of a record, as an interruption leaves it."""
    return any(line.startswith(begin) or begin.startswith(line) for begin in BEGINNINGS)


def _shown(line: bytes) -> str:
    text = line[:200].decode(errors="replace").strip()
    return repr(text if len(text) <= 40 else text[:40] + "...")


class Log:
    """A results file open for more records, which no other process can open for more at the same time.

    Opening it repairs the end: a half-written last record, which an interruption may leave, is cut off. Of what it does
    not understand nothing is touched. As a context it sees that no Control-C is lost: where a library's callback
    swallows the KeyboardInterrupt, the next record raises it, and Python does not report it before.

    Attributes:
        path: the file. records: all that are in it.

    Raises:
        ResultsError: as `read`; another process holds the file, or it cannot be written.
    """

    def __init__(self, path: str | Path):
        if not str(path):
            raise ResultsError("results: expected a path, got ''")
        self.path = Path(path)
        read(self.path)  # what is no results file is refused before anything is written beside it
        with _failing(self.path), contextlib.ExitStack() as stack:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.held(self.path))
            self._file = stack.enter_context(open(self.path, "ab", buffering=0))
            with open(self.path, "rb") as file:
                self.records, used, open_ended = _parse(file, self.path)
            if used < self.path.stat().st_size:
                self._file.truncate(used)
            if open_ended:
                self._write(b"\n")
            self._closing = stack.pop_all()
        self._keys = {record.key(found) for found in self.records}
        self._interrupted, self._handler = False, None

    def __contains__(self, found: Record) -> bool:
        """Whether there is a record of the same measurement."""
        return record.key(found) in self._keys

    def append(self, found: Record) -> None:
        """Adds a record and waits until it is on the disk."""
        found = record.check(found, "a new record")
        self._write(json.dumps(found).encode() + b"\n")
        self.records.append(found)
        self._keys.add(record.key(found))
        if self._interrupted:
            raise KeyboardInterrupt

    def _write(self, data: bytes) -> None:
        with _failing(self.path):
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._closing.close()

    def __enter__(self) -> "Log":
        # No other thread may set handlers; a signal that is ignored, as in the background, stays so.
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
            self._report, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(self, _, error, __) -> None:
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"{self.path} has every record so far.")
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            sys.unraisablehook = self._report
        self.close()

    def _interrupt(self, number, frame) -> None:
        self._interrupted = True
        raise_interrupt(number, frame)

    def _swallowed(self, unraisable) -> None:
        if not (self._interrupted and unraisable.exc_type is KeyboardInterrupt):
            self._report(unraisable)
