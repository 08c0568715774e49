"""Typed reading of a JSON object, which remembers what was asked for; every error names its field in one line."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenspeed.messages import listed, shown
from tokenspeed.models.config import ConfigError

LARGEST_FILE = 64 << 20
"""Bytes of a JSON or text file; those of published checkpoints stay below."""
LARGEST_INTEGER = 2**31 - 1
"""Of sizes, positions and token ids, which are int32 on the device."""


def read_text(path: Path, error: type[ValueError] = ConfigError) -> str:
    """The text of a file in UTF-8; a one-line `error` where there is none, or it is too large to be what it should."""
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may have no end
            raise error(f"{path}: expected a file")
        if path.stat().st_size > LARGEST_FILE:
            raise error(f"{path}: expected at most {LARGEST_FILE >> 20} MiB, got {path.stat().st_size >> 20}")
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise error(f"{path}: {problem.strerror or problem}") from None
    except UnicodeDecodeError as problem:
        raise error(f"{path}: expected text in UTF-8 ({problem})") from None


def read_json(path: Path, error: type[ValueError] = ConfigError) -> dict[str, Any]:
    """A JSON object from a file; a one-line `error` where there is none, or a name comes twice in an object."""
    try:
        found = json.loads(read_text(path, error), object_pairs_hook=_no_name_twice)
    except error:
        raise
    except RecursionError:
        raise error(f"{path}: expected JSON, got brackets nested too deeply") from None
    except ValueError as problem:
        raise error(f"{path}: expected JSON ({problem})") from None
    if not isinstance(found, dict):
        raise error(f"{path}: expected a JSON object, got {shown(found)}")
    return found


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"{listed(name for name in counts if counts[name] > 1)}: given twice")
    return found


class Fields:
    """The fields of a JSON object. A field that is null counts as absent.

    Attributes:
        raw: the object. within: what its fields' names begin with in messages. used: the names that were asked for.
    """

    def __init__(self, raw: Mapping[str, Any], within: str = ""):
        self.raw, self.within, self.used = raw, within, set()

    def get(self, name: str, default: Any = None) -> Any:
        self.used.add(name)
        value = self.raw.get(name)
        return default if value is None else value

    def error(self, name: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.within}{name}: {problem}")

    def integer(self, name: str, default: int | None = None, *, least: int = 1, most: int = LARGEST_INTEGER) -> int:
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(
                name, f"expected {'a positive' if least else 'a non-negative'} integer, got {shown(value)}"
            )
        if value > most:
            raise self.error(name, f"expected at most {most}, got {shown(value)}")
        return value

    def number(self, name: str, default: float | None = None, *, least: float = 0, most: float = 1e12) -> float:
        """A number in [least, most], above 0."""
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.error(name, f"expected a positive number, got {shown(value)}")
        if not least <= value <= most:
            raise self.error(name, f"expected a number from {least:g} to {most:g}, got {shown(value)}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"expected true or false, got {shown(value)}")
        return value

    def choice(self, name: str, choices: Iterable[str], default: str | None = None) -> str:
        value, choices = self._given(name, default), list(choices)
        if not isinstance(value, str) or value not in choices:
            raise self.error(name, f"expected one of {', '.join(choices)}, got {shown(value)}")
        return value

    def inner(self, name: str) -> "Fields":
        """The fields of an object inside; none where it is absent."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self.error(name, f"expected an object, got {shown(value)}")
        return Fields(value, f"{self.within}{name}.")

    def _given(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is None:
            raise self.error(name, "missing")
        return value
