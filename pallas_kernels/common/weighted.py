"""RMSNorm in two halves: its weight is multiplied in where rows are made, its factor where they are used.

The factor, one number a row, needs the whole row, which no program of the kernel that makes it has; the weight needs
none of that. So the maker stores the rows with the weight in them, and beside them what each of its programs knows of
the squares; the user streams its weights past rows that are ready, and applies the factor to its finished sums. Neither
a launch nor a pass over the row is left of the norm.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.common import checks
from pallas_kernels.common.arithmetic import rms_norm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighted:
    """Rows on their way through RMSNorm: its weight is in them, its factor is not.

    Attributes:
        x: [B, D], the rows times the norm's weight.
        squares: float32 [B, parts], the sums of squares of the rows themselves, each of a part of them; with those,
            RMSNorm of the rows is x / sqrt(sum(squares) / D + eps).
    """

    x: jax.Array
    squares: jax.Array


def weigh(rows: jax.Array, weight: jax.Array, offset: float, *, dtype, part: int) -> Weighted:
    """rows [B, D] times (weight [D] + offset), rounded to `dtype`, with the squares of each `part` columns."""
    rows = rows.astype(jnp.float32)
    parts = -(-rows.shape[1] // part)
    padded = jnp.pad(rows, ((0, 0), (0, parts * part - rows.shape[1])))
    return Weighted(
        x=(rows * (weight.astype(jnp.float32) + offset)).astype(dtype),
        squares=jnp.sum(jnp.square(padded).reshape(rows.shape[0], parts, part), axis=2),
    )


def normed(x: jax.Array | Weighted, weight: jax.Array | None, eps: float, offset: float) -> jax.Array:
    """RMSNorm of rows, float32: all of it, or of weighted ones what is left of it."""
    if not isinstance(x, Weighted):
        return rms_norm(x, weight, eps, offset)
    squares = jnp.sum(x.squares, axis=1, keepdims=True)
    return x.x.astype(jnp.float32) * lax.rsqrt(squares / x.x.shape[1] + eps)


def weight_left(x: jax.Array | Weighted, weight: jax.Array) -> jax.Array | None:
    """What the user of x takes as its norm's weight: None where x has it already."""
    return None if isinstance(x, Weighted) else weight


def weight_dtype(weight_rows: jax.Array, x: jax.Array | Weighted) -> str:
    """The dtype of a weight's rows, in which a kernel multiplies; raises unless x has it, or is normed from float32."""
    rows = x.x if isinstance(x, Weighted) else x
    if isinstance(x, Weighted) or rows.dtype != jnp.float32:
        checks.same_dtype("weight.rows", weight_rows, "x", rows)
    return checks.float_dtype("weight.rows", weight_rows)


def check(x: jax.Array | Weighted, norm: jax.Array | None) -> jax.Array:
    """The rows of the argument `x` as an array; raises unless they and the norm's weight go together."""
    if not isinstance(x, Weighted):
        checks.shape("x", x, ("B", "D"))
        checks.rows("x", x)
        if norm is None:
            raise ValueError(f"norm: expected shape [{x.shape[1]}], got None; only weighted rows go without")
        checks.shape("norm", norm, (x.shape[1],))
        return x
    checks.shape("x.x", x.x, ("B", "D"))
    checks.rows("x.x", x.x)
    checks.shape("x.squares", x.squares, (x.x.shape[0], "parts"))
    if x.squares.dtype != jnp.float32:
        raise TypeError(f"x.squares: expected dtype float32, got {x.squares.dtype}")
    if norm is not None:
        raise ValueError("norm: expected None for weighted rows, which have a norm's weight in them already")
    return x.x
