"""Values that callers pass, checked: one line says the argument, what is allowed and what was given."""

import math
import numbers
import operator
from collections.abc import Iterable, Mapping

from tokenspeed.messages import shown

MAX_INT = 2**31 - 1


def integer(name: str, value, low: int, high: int, *, of: str = "") -> int:
    """An integer of the range as an `int`; `of` ends what the message says of the range.

    Raises:
        TypeError: neither an integer nor a scalar integer of numpy or jax; a bool is none.
        ValueError: outside the range.
    """
    wanted = f"an integer from {low} to {high}{of}"
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected {wanted}, got {shown(value)}") from None
    if not low <= found <= high:
        raise ValueError(f"{name}: expected {wanted}, got {found}")
    return found


def number(name: str, value, low: float, high: float, *, above: bool = False) -> float:
    """A finite number of the range as a `float`; `above`: `low` itself is outside.

    Raises:
        TypeError: no real number; a bool is none. ValueError: outside the range.
    """
    allowed = f"{low} or more" if high == math.inf else f"from {low} to {high}"
    if above:
        allowed = f"above {low} and at most {high}"
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # a scalar of numpy or jax
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number {allowed}, got {shown(value)}")
    try:
        found = float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number {allowed}, got an integer too large for a float") from None
    # NaN fails every comparison, so what is asked is whether the number is inside.
    if not (low <= found <= high and math.isfinite(found)) or (above and found == low):
        raise ValueError(f"{name}: expected a number {allowed}, got {value}")
    return found


def boolean(name: str, value) -> bool:
    """Raises TypeError unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return value


def one_of(name: str, value, allowed: Iterable[str]) -> str:
    """Raises ValueError unless it is one of the strings."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {shown(value)}")
    return value


def is_sequence(value) -> bool:
    """Whether it is a collection in an order: not a string, bytes, a mapping, a set or an iterator."""
    unordered = isinstance(value, str | bytes | bytearray | memoryview | Mapping | set | frozenset)
    return not unordered and isinstance(value, Iterable) and hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0


def integers(name: str, values, low: int, high: int) -> list[int]:
    """A sequence of integers of the range, token ids mostly, as a list of `int`.

    Raises:
        TypeError: no sequence, or something in it is no integer. ValueError: one is outside the range.
    """
    if not is_sequence(values):
        raise TypeError(f"{name}: expected a sequence of integers, got {shown(values)}")
    values = values.tolist() if hasattr(values, "tolist") else list(values)  # an array's elements are slow one by one
    # A prompt of plain integers all inside takes no Python for each.
    if set(map(type, values)) == {int} and low <= min(values) and max(values) <= high:
        return values
    return [integer(name, value, low, high) for value in values]
