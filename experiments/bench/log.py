"""A file of results: one record a line, appended as it comes, so that an interruption loses nothing."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

from experiments.bench import record
from experiments.bench.errors import ResultsError
from experiments.bench.record import Record

RESULTS = Path(__file__).resolve().parents[1] / "results"
"""What is committed."""


def read(path: str | Path) -> list[Record]:
    """The records of a file; [] where there is none. A half-written last line is left out."""
    return _parse(Path(path))[0]


def _parse(path: Path) -> tuple[list[Record], int, bool]:
    """The records, the bytes that hold them, and whether the last of them lacks its newline."""
    if not path.exists():
        return [], 0, False
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror or error}") from None
    records, used = [], 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        ended = line.endswith(b"\n")
        try:
            found = json.loads(line) if line.strip() else None
        except ValueError:
            if not ended:
                return records, used, False
            raise ResultsError(f"{path}:{number}: expected a JSON object, got {_shown(line)}") from None
        if found is not None:
            records.append(record.check(found, f"{path}:{number}"))
        used += len(line)
        if not ended:
            return records, used, True
    return records, used, False


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= 40 else text[:40] + "...")


class Log:
    """A results file open for more records.

    Opening it repairs the end: a half-written last line, which an interruption may leave, is cut off. As a context it
    sees that no Control-C is lost: where a library's callback swallows the KeyboardInterrupt, the next record raises
    it, and Python does not report it before.

    Attributes:
        path: the file. records: all that are in it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.records, used, open_ended = _parse(self.path)
        self._keys = {record.key(found) for found in self.records}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")  # noqa: SIM115
        except OSError as error:
            raise ResultsError(f"{self.path}: {error.strerror or error}") from None
        self._file.truncate(used)
        if open_ended:
            self._write(b"\n")
        self._interrupted, self._handler = False, None

    def __contains__(self, found: Record) -> bool:
        """Whether there is a record of the same measurement."""
        return record.key(found) in self._keys

    def append(self, found: Record) -> None:
        """Adds a record and waits until it is on the disk."""
        self._write(json.dumps(record.check(found, "a new record")).encode() + b"\n")
        self.records.append(found)
        self._keys.add(record.key(found))
        if self._interrupted:
            raise KeyboardInterrupt

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Log":
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
            self._report, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(self, *_) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            sys.unraisablehook = self._report
        self.close()

    def _interrupt(self, number, frame) -> None:
        self._interrupted = True
        signal.default_int_handler(number, frame)

    def _swallowed(self, unraisable) -> None:
        if not (self._interrupted and unraisable.exc_type is KeyboardInterrupt):
            self._report(unraisable)
