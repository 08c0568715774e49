"""Types of the fields of a record: what a value must be, as a check and in words."""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.bench.models import DTYPES
from tokenspeed.models import kv_dtypes

MOST = 1e300
"""What JSON writes beyond this is infinity, or an integer that no float holds."""


@dataclasses.dataclass(frozen=True)
class Type:
    """What a value must be.

    Attributes:
        wanted: it in words. holds: whether a value is that.
    """

    wanted: str
    holds: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return type(value) in (int, float) and -MOST < value < MOST


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def one_of(*values: str) -> Type:
    return Type(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def table(inner: Type) -> Type:
    """A JSON object whose values are all of one type."""
    return Type(
        f"a table of {inner.wanted}",
        lambda value: isinstance(value, dict) and all(map(inner.holds, value.values())),
    )


def a_list(inner: Type) -> Type:
    return Type(f"a list of {inner.wanted}", lambda value: isinstance(value, list) and all(map(inner.holds, value)))


def _tile_counts(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"feasible", "of", "reasons"}
        and _whole(value["feasible"])
        and _whole(value["of"])
        and table(COUNT).holds(value["reasons"])
    )


TEXT = Type("text", lambda value: isinstance(value, str))
FLAG = Type("true or false", lambda value: isinstance(value, bool))
NUMBER = Type("a number", _number)
POSITIVE = Type("a positive number", lambda value: _number(value) and value > 0)
AMOUNT = Type("a number of at least 0", lambda value: _number(value) and value >= 0)
COUNT = Type("a whole number", _whole)
SIZE = Type("a whole number of at least 1", lambda value: _whole(value) and value > 0)
DTYPE = one_of(*DTYPES)
STORED_KV = one_of(*kv_dtypes.CHOICES, *(f"{k}/{v}" for k in kv_dtypes.CHOICES for v in kv_dtypes.CHOICES))
TILES = table(Type("whole numbers and flags", lambda value: isinstance(value, bool) or _whole(value)))
CLOCKS = table(Type("whole numbers", lambda value: value is None or _whole(value)))
TILE_COUNTS = table(Type("feasible, of and reasons", _tile_counts))
