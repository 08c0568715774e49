"""Deferred RMSNorm: its weight is multiplied in where activations are made, its factor where they are used.

The factor, one number an activation row, needs the whole row, which no program of the kernel that makes it has; the
weight needs none of that. So the maker (`out`, `down`) stores rows that carry the norm's weight, and beside them what
each of its programs knows of the squares; the user (`qkv`, `gate_up`, `head`) streams its weights past rows that are
ready, and applies the factor to its finished sums. Neither a launch nor a pass over the row is left of the norm.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.common import checks, fixed_point
from pallas_kernels.common.arithmetic import rms_norm
from pallas_kernels.common.fixed_point import Rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DeferredNorm:
    """Activation rows that carry the weight of their RMSNorm, and not yet its factor; a pytree.

    Attributes:
        x: [B, D], the rows times the norm's weight; bfloat16, float16 or float32, or in fixed point.
        squares: float32 [B, parts], partial sums of the squares of the rows themselves; RMSNorm of the rows is
            x / sqrt(sum(squares) / D + eps).
    """

    x: Rows
    squares: jax.Array


def defer_norm(rows: jax.Array, weight: jax.Array, offset: float = 0.0, *, dtype, part: int) -> DeferredNorm:
    """The plain form of what `out` and `down` do with `norm=`.

    Args:
        rows: [B, D], any float dtype. weight: [D], of the norm. offset: added to the weight (1.0 for Gemma).
        dtype: of the result's x, one of `DTYPES`. part: how many columns' squares are summed together.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it.
    """
    checks.shape("rows", rows, ("B", "D"))
    checks.floating("rows", rows)
    checks.norm_weight("weight", weight, rows.shape[1])
    offset, part = checks.number("offset", offset), checks.whole("part", part, 1)
    dtype = checks.one_of_dtypes("dtype", dtype, checks.DTYPES)
    rows = rows.astype(jnp.float32)
    parts = -(-rows.shape[1] // part)
    padded = jnp.pad(rows, ((0, 0), (0, parts * part - rows.shape[1])))
    return DeferredNorm(
        x=(rows * (weight.astype(jnp.float32) + offset)).astype(dtype),
        squares=jnp.sum(jnp.square(padded).reshape(rows.shape[0], parts, part), axis=2),
    )


def finish_norm(x: jax.Array | DeferredNorm, weight: jax.Array | None, eps: float, offset: float = 0.0) -> jax.Array:
    """RMSNorm of activation rows, float32 [B, D]: all of it, or the factor alone where the rest was deferred.

    Args:
        x: [B, D], any float dtype, or a `DeferredNorm`. weight: [D], of the norm; None with a `DeferredNorm`.
        eps: added to the mean square, above 0. offset: added to the weight (1.0 for Gemma).

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it.
    """
    eps, offset = checks.positive("eps", eps), checks.number("offset", offset)
    if not isinstance(x, DeferredNorm):
        return rms_norm(x, weight, eps, offset)
    check(x, weight, "weight")
    squares = jnp.sum(x.squares, axis=1, keepdims=True)
    return fixed_point.to_floats(x.x).astype(jnp.float32) * lax.rsqrt(squares / x.x.shape[1] + eps)


def check(x: jax.Array | DeferredNorm, norm: jax.Array | None, name: str = "norm") -> Rows:
    """The rows of the argument `x`; raises unless they and the norm's weight go together."""
    if isinstance(x, fixed_point.FixedPointRows):
        raise TypeError("x: expected an array or a DeferredNorm, got rows in fixed point, which no norm is fused with")
    if not isinstance(x, DeferredNorm):
        checks.shape("x", x, ("B", "D"))
        checks.float_dtype("x", x)
        if norm is None:
            size = x.shape[1]
            raise ValueError(f"{name}: expected shape [{size}], got None; only rows of a deferred norm go without")
        checks.norm_weight(name, norm, x.shape[1])
        return x
    fixed_point.check("x.x", x.x, ("B", "D"))
    checks.float_dtype("x", x.x)
    checks.shape("x.squares", x.squares, (x.x.shape[0], "parts"))
    checks.dtype_is("x.squares", x.squares, jnp.float32)
    if norm is not None:
        raise ValueError(f"{name}: expected None for rows of a deferred norm, which carry a norm's weight already")
    return x.x


def weight_dtype(weight, x: jax.Array | DeferredNorm) -> str:
    """The dtype in which a kernel multiplies; raises unless x has the weight's, or is normed from float32."""
    rows = x.x if isinstance(x, DeferredNorm) else x
    if isinstance(x, DeferredNorm) or rows.dtype != jnp.float32:
        checks.same_dtype("weight", weight, "x", rows)
    return checks.float_dtype("weight", weight)
