"""The file of a sweep: one JSON object a line, appended as it comes, so that an interruption loses nothing."""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SOFTWARE = ("device", "jax", "kernels")
"""What rows must share to be compared: the device, the jax, and the sources of the kernels and of what times them."""
KEY_FIELDS = ("mode", "op", "model", "rows", "context", "dtype", "tiles", *SOFTWARE)
"""What makes two rows the same measurement: the case, the tile, the device, and the software that ran."""
REQUIRED = ("op", "model")


class ResultsError(Exception):
    """A results file that cannot be read; one line that names the file and the line."""


def key(row: Row) -> str:
    """A row's identity."""
    return json.dumps([row.get(field) for field in KEY_FIELDS], sort_keys=True)


def read(path: str | Path) -> list[Row]:
    """The rows of a file; [] where there is none. A half-written last line is left out."""
    return _parse(Path(path))[0]


def _parse(path: Path) -> tuple[list[Row], int, bool]:
    """The rows, the bytes that hold them, and whether the last of them lacks its newline."""
    if not path.exists():
        return [], 0, False
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror or error}") from None
    rows, used = [], 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        ended = line.endswith(b"\n")
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            if not ended:
                return rows, used, False
            raise ResultsError(f"{path}:{number}: expected a JSON object, got {_shown(line)}") from None
        if row is not None:
            lacking = list(REQUIRED) if not isinstance(row, dict) else [f for f in REQUIRED if f not in row]
            if lacking:
                raise ResultsError(f"{path}:{number}: expected a row with {', '.join(lacking)}, got {_shown(line)}")
            rows.append(row)
        used += len(line)
        if not ended:
            return rows, used, True
    return rows, used, False


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= 40 else text[:40] + "...")


class Log:
    """A results file open for more rows.

    Opening it repairs the end: a half-written last line, which an interruption may leave, is cut off. As a context it
    sees that no Control-C is lost: where a library's callback swallows the KeyboardInterrupt, the next row raises it,
    and Python does not report it before.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.rows, used, open_ended = _parse(self.path)
        self._keys = {key(row) for row in self.rows}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")  # noqa: SIM115
        except OSError as error:
            raise ResultsError(f"{self.path}: {error.strerror or error}") from None
        self._file.truncate(used)
        if open_ended:
            self._write(b"\n")
        self._interrupted, self._handler = False, None

    def __contains__(self, row: Row) -> bool:
        return key(row) in self._keys

    def append(self, row: Row) -> None:
        """Adds a row and waits until it is on the disk."""
        self._write(json.dumps(row).encode() + b"\n")
        self.rows.append(row)
        self._keys.add(key(row))
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
