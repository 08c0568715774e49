"""Typed reading of a JSON object, which remembers what was asked for; every error names its field in one line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenspeed.models.config import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; a one-line ConfigError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: expected JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return found


class Fields:
    """The fields of a JSON object. A field that is null counts as absent.

    Attributes:
        raw: the object. used: the names that were asked for.
    """

    def __init__(self, raw: Mapping[str, Any]):
        self.raw, self.used = raw, set()

    def get(self, name: str, default: Any = None) -> Any:
        self.used.add(name)
        value = self.raw.get(name)
        return default if value is None else value

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if value is None:
            raise ConfigError(f"{name}: missing")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}: expected a positive integer, got {value!r}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if value is None:
            raise ConfigError(f"{name}: missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(f"{name}: expected a positive number, got {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{name}: expected true or false, got {value!r}")
        return value
