"""One-line errors for arguments: what they are called, what was expected, what came."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

DTYPES = ("bfloat16", "float16", "float32")


def shape(name: str, array, expected: tuple) -> None:
    """Raises unless `array` has the expected shape; a string in `expected` stands for any size."""
    got = tuple(array.shape) if hasattr(array, "shape") else tuple(jnp.shape(array))
    if len(got) != len(expected) or any(isinstance(e, int) and e != g for e, g in zip(expected, got, strict=True)):
        wanted = ", ".join(str(e) for e in expected)
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(got)}")


def rows(name: str, array) -> None:
    """Raises unless `array` has a row."""
    if array.shape[0] < 1:
        raise ValueError(f"{name}: expected 1 row or more, got {array.shape[0]}")


def float_dtype(name: str, array) -> str:
    """Returns the dtype's name, or raises unless it is one that the kernels take."""
    dtype = str(array.dtype)
    if dtype not in DTYPES:
        raise TypeError(f"{name}: expected dtype {', '.join(DTYPES)}, got {dtype}")
    return dtype


def one_of_dtypes(name: str, dtype, allowed: tuple[str, ...]) -> str:
    """Returns the name of `dtype`, or raises unless it is one of those."""
    try:
        found = jnp.dtype(dtype).name
    except TypeError:
        found = repr(dtype)
    if found not in allowed:
        raise TypeError(f"{name}: expected {' or '.join(dict.fromkeys(allowed))}, got {found}")
    return found


def same_dtype(name: str, array, other_name: str, other) -> None:
    if array.dtype != other.dtype:
        raise TypeError(f"{name}: expected the dtype of {other_name}, {other.dtype}, got {array.dtype}")


def indices(name: str, array, expected: tuple, low: int, high: int) -> None:
    """Raises unless `array` is int32 of the expected shape and, where its values are known, in [low, high)."""
    shape(name, array, expected)
    if array.dtype != jnp.int32:
        raise TypeError(f"{name}: expected dtype int32, got {array.dtype}")
    if not isinstance(array, Tracer) and hasattr(array, "__array__"):
        values = np.asarray(array)
        if values.size and (values.min() < low or values.max() >= high):
            raise ValueError(f"{name}: expected values in [{low}, {high}), got {values.min()} to {values.max()}")


def sequence_of_rows(sequence, rows: int, sequences: int) -> None:
    """Raises unless `sequence` says of each row which sequence it belongs to; None is row i of sequence i."""
    if sequence is not None:
        indices("sequence", sequence, (rows,), 0, sequences)
    elif rows > sequences:
        raise ValueError(f"sequence: needed where there are more rows ({rows}) than sequences ({sequences})")


def positive(name: str, value) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{name}: expected a positive number or None, got {value}")
