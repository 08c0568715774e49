"""One-line errors for arguments: what they are called, what was expected, what came.

Types, shapes, dtypes and static numbers are checked at every call, in tracing too. Values of arrays are looked at where
they are known and the array is small (positions, lengths, page tables); under jit they cannot be.
"""

import math
import numbers
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

DTYPES = ("bfloat16", "float16", "float32")


def described(value: Any) -> str:
    """What came, for the end of a message."""
    if value is None or isinstance(value, bool | str | numbers.Number):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:40]}..."
    if _is_array(value):
        return f"an array of {value.dtype}{list(value.shape)}"
    return type(value).__name__


def _is_array(value: Any) -> bool:
    return all(hasattr(value, field) for field in ("shape", "dtype", "ndim")) and not isinstance(value, type)


def instance(name: str, value: Any, kind: type, hint: str = "") -> None:
    """Raises unless `value` is a `kind`, of which `hint` says more."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected a {kind.__name__}{hint}, got {described(value)}")


def array(name: str, value: Any) -> None:
    """Raises unless `value` is an array, or stands for one while something is traced."""
    if not _is_array(value):
        raise TypeError(f"{name}: expected an array, got {described(value)}")


def shape(name: str, value: Any, expected: tuple, hint: str = "") -> None:
    """Raises unless `value` is an array of the expected shape; a string in `expected` stands for any size but 0."""
    array(name, value)
    got = tuple(value.shape)
    wanted = ", ".join(str(e) for e in expected)
    if len(got) != len(expected) or any(isinstance(e, int) and e != g for e, g in zip(expected, got)):
        raise ValueError(f"{name}: expected shape [{wanted}]{hint}, got {list(got)}")
    if 0 in got:
        raise ValueError(f"{name}: expected shape [{wanted}]{hint} with nothing 0, got {list(got)}")


def last_axis(name: str, value: Any, axis: str) -> None:
    """Raises unless `value` is an array of one axis or more, the last of which is not empty."""
    array(name, value)
    if not value.shape or value.shape[-1] < 1:
        raise ValueError(f"{name}: expected shape [..., {axis}], got {list(value.shape)}")


def float_dtype(name: str, array) -> str:
    """Returns the dtype's name, or raises unless it is one that the kernels take."""
    dtype = str(array.dtype)
    if dtype not in DTYPES:
        raise TypeError(f"{name}: expected dtype {', '.join(DTYPES)}, got {dtype}")
    return dtype


def norm_weight(name: str, array, size: int) -> None:
    """Raises unless `array` is the weight of a norm over `size` dimensions."""
    shape(name, array, (size,))
    floating(name, array)


def floating(name: str, array) -> None:
    """Raises unless the dtype is one of real floating-point numbers."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating-point dtype, got {array.dtype}")


def dtype_is(name: str, array, dtype: Any) -> None:
    if array.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {jnp.dtype(dtype).name}, got {array.dtype}")


def one_of_dtypes(name: str, dtype, allowed: tuple[str, ...]) -> str:
    """Returns the name of `dtype`, or raises unless it is one of those."""
    try:
        found = jnp.dtype(dtype).name if isinstance(dtype, str | type | np.dtype) else None
    except (TypeError, ValueError):
        found = None
    if found not in allowed:
        raise TypeError(f"{name}: expected {' or '.join(dict.fromkeys(allowed))}, got {found or described(dtype)}")
    return found


def same_dtype(name: str, array, other_name: str, other) -> None:
    if array.dtype != other.dtype:
        raise TypeError(f"{name}: expected the dtype of {other_name}, {other.dtype}, got {array.dtype}")


def known(array: Any) -> np.ndarray | None:
    """The values of an array, or None where they are not known: traced, or a `jax.ShapeDtypeStruct`."""
    if isinstance(array, Tracer) or not hasattr(array, "__array__"):
        return None
    return np.asarray(array)


def indices(name: str, array, expected: tuple, low: int, high: int) -> None:
    """Raises unless `array` is int32 of the expected shape and, where its values are known, in [low, high)."""
    shape(name, array, expected)
    dtype_is(name, array, jnp.int32)
    values = known(array)
    if values is not None and values.size and (values.min() < low or values.max() >= high):
        raise ValueError(f"{name}: expected values in [{low}, {high}), got {values.min()} to {values.max()}")


def fractions(name: str, array: Any, expected: tuple) -> None:
    """Raises unless `array` is float32 of the expected shape and, where its values are known, from 0 to 1."""
    shape(name, array, expected)
    dtype_is(name, array, jnp.float32)
    values = known(array)
    if values is not None and not ((values >= 0) & (values <= 1)).all():  # NaN is not, either
        raise ValueError(f"{name}: expected values from 0 to 1, got {values.min()} to {values.max()}")


def number(name: str, value: Any) -> float:
    """`value` as a float; raises unless it is a finite number (of Python or NumPy: it is static, so no array)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a finite number, got {described(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name}: expected a finite number, got {described(value)}")
    return found


def positive(name: str, value: Any) -> float:
    """`value` as a float; raises unless it is a finite number above 0."""
    found = number(name, value)
    if not found > 0:
        raise ValueError(f"{name}: expected a positive number, got {described(value)}")
    return found


def whole(name: str, value: Any, least: int) -> int:
    """`value` as an int; raises unless it is a whole number, static, of `least` or more, in 32 bits."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected a whole number of {least} or more, got {described(value)}")
    found = int(value)
    if not least <= found < 2**31:
        raise ValueError(f"{name}: expected a whole number from {least} to {2**31 - 1}, got {described(value)}")
    return found


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Returns `value`, or raises unless it is one of those names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {described(value)}")
    return value
