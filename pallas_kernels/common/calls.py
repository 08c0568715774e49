"""What the public functions share: the static part of a call, and calls of more rows than one launch takes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.common.deferred_norm import DeferredNorm
from pallas_kernels.common.fixed_point import FixedPointRows, Rows, check_use
from pallas_kernels.common.quantised import QuantisedWeight
from pallas_kernels.common.stream_tiles import StreamShape, Tiles

MAX_ROWS = 256
"""Activation rows of one launch, one pass over its weight: nothing outside this package depends on it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What is static in a call of an op that streams a weight."""

    shape: StreamShape
    tiles: Tiles
    interpret: bool
    prefetch_bytes: int = 0


def rows_of(x: Rows | DeferredNorm) -> int:
    """Activation rows, of a plain array or of a deferred norm."""
    return (x.x if isinstance(x, DeferredNorm) else x).shape[0]


def stream_shape(x: Rows | DeferredNorm, weight: Any, *, norm: bool = False) -> StreamShape:
    """The problem of one launch over these activation rows."""
    return StreamShape(
        rows=min(rows_of(x), MAX_ROWS),
        outputs=weight.shape[0],
        inputs=weight.shape[-1],
        groups=2 if len(weight.shape) == 3 else 1,
        dtype=str(weight.dtype),
        weight_dtype=weight.format if isinstance(weight, QuantisedWeight) else None,
        scale_group=weight.group if isinstance(weight, QuantisedWeight) else None,
        activation_bits=16 if getattr(weight, "activations", None) is None else 8,
        norm=norm,
    )


def check_format(x: Rows | DeferredNorm, weight: Any) -> None:
    """Raises unless the activation rows are in a form that this weight is multiplied with."""
    rows = x.x if isinstance(x, DeferredNorm) else x
    if isinstance(rows, FixedPointRows):
        check_use("x", rows, stream_shape(rows, weight))


def launches(implementation: str, rows: int) -> list[slice]:
    """The rows of each launch; XLA's implementation takes any number at once."""
    most = rows if implementation == "xla" else MAX_ROWS
    return [slice(start, min(start + most, rows)) for start in range(0, rows, most)]


def rows_in(tree: Any, rows: slice) -> Any:
    """Those rows of every array in a pytree."""
    return jax.tree.map(lambda array: array[rows], tree)


def joined(parts: list) -> Any:
    """Results of several launches as one, row after row."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def in_launches(implementation: str, launch: Callable, *by_row: Any, join: Callable[[list], Any] = joined) -> Any:
    """`launch(*by_row)`, on as many rows at a time as it takes; the first of them is never None."""
    groups = launches(implementation, rows_of(by_row[0]))
    if len(groups) == 1:
        return launch(*by_row)
    return join([launch(*rows_in(by_row, group)) for group in groups])
