"""The arithmetic that references, kernels and models share."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.common import checks, quantised, weights
from pallas_kernels.common.quantised import QuantisedWeight
from pallas_kernels.common.weights import Weight

ACTIVATIONS = ("silu", "gelu_tanh")


def rms_norm(x: jax.Array, weight: jax.Array | None, eps: float, offset: float = 0.0) -> jax.Array:
    """RMSNorm over the last axis (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps) * (weight + offset).

    Args:
        x: [..., D], any float dtype. weight: [D], or None for 1. eps: added to the mean square, above 0.
        offset: added to the weight (1.0 for Gemma).

    Returns:
        float32 [..., D].

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it.
    """
    checks.last_axis("x", x, "D")
    checks.floating("x", x)
    if weight is not None:
        checks.norm_weight("weight", weight, x.shape[-1])
    eps, offset = checks.positive("eps", eps), checks.number("offset", offset)
    x = x.astype(jnp.float32)
    x = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x if weight is None else x * (weight.astype(jnp.float32) + offset)


def activate(name: str, x: jax.Array) -> jax.Array:
    """The activation of a gated MLP, of x [...]: 'silu', or 'gelu_tanh' (Hendrycks and Gimpel 2016).

    Raises:
        ValueError, TypeError: the name is not one of `ACTIVATIONS`, or x no array of floating-point numbers.
    """
    checks.one_of("name", name, ACTIVATIONS)
    checks.array("x", x)
    checks.floating("x", x)
    if name == "silu":
        return x / (1.0 + jnp.exp(-x))
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1.0 + jnp.exp(-2.0 * inner))


def cap(x: jax.Array, soft_cap: float | None) -> jax.Array:
    """Soft cap of Gemma 2: soft_cap * tanh(x / soft_cap)."""
    return x if soft_cap is None else soft_cap * jnp.tanh(x / soft_cap)


def project(x: jax.Array, weight: Weight, *, out_dtype: Any = jnp.float32) -> jax.Array:
    """x times a packed weight, plus its bias: the plain form of a projection, by XLA.

    Args:
        x: [..., I], any float dtype; rounded to the weight's dtype. weight: of shape [O, I] or [O, 2, I]; a quantised
            one with several scales a row is rounded to its dtype, too.
        out_dtype: of the result, one of `DTYPES`.

    Returns:
        [..., O] or [..., O, 2]; sums are float32.

    Raises:
        ValueError, TypeError: an argument's shape or dtype is wrong; the message names it.
    """
    checks.last_axis("x", x, "I")
    checks.floating("x", x)
    pair = len(getattr(weight, "shape", ())) == 3
    weights.check(weight, ("O", 2, x.shape[-1]) if pair else ("O", x.shape[-1]), "pack_*")
    out_dtype = checks.one_of_dtypes("out_dtype", out_dtype, checks.DTYPES)
    values, scales = _factors(weight)
    if isinstance(weight, QuantisedWeight) and weight.activations == "int8":
        x = quantised.rounded(x)
    precision = lax.Precision.HIGHEST if values.dtype == jnp.float32 else None
    plain = scales is None and weight.bias is None
    y = lax.dot_general(
        x.astype(values.dtype).reshape(-1, x.shape[-1]),
        values.reshape(-1, values.shape[-1]),
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=out_dtype if plain else jnp.float32,
    ).reshape(-1, *values.shape[:-1])
    if scales is not None:
        y = y * scales.astype(jnp.float32)
    if weight.bias is not None:
        y = y + weight.bias.astype(jnp.float32)
    return y.astype(out_dtype).reshape(*x.shape[:-1], *y.shape[1:])


def _factors(weight: Weight) -> tuple[jax.Array, jax.Array | None]:
    """What is multiplied with x, in the weight's dtype, and what the sums are multiplied with, or None."""
    if not isinstance(weight, QuantisedWeight):
        return weight.values, None
    if weight.group is None and weight.zeros is None:  # 8 bits are exact in every dtype
        return quantised.stored(weight).astype(weight.dtype), weight.scales[..., 0]
    return quantised.dequantise(weight).astype(weight.dtype), None


def rotate(x: jax.Array, positions: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """RoPE (Su et al. 2021), the two halves of the rotated dimensions against each other.

    Args:
        x: float32 [B, heads, H]; dimensions past R pass as they are.
        positions: int32 [B]; -1 (padding) counts as 0. One beyond the table is an error where it is known, and gives
            NaN under jit.
        rope: (cos, sin), float32 [S, R / 2] each.

    Returns:
        float32 [B, heads, H].

    Raises:
        ValueError, TypeError: an argument's shape, dtype or known value is wrong; the message names it.
    """
    checks.shape("x", x, ("B", "heads", "H"))
    checks.floating("x", x)
    check_rope(rope, positions, x.shape[0], x.shape[2])
    places = jnp.maximum(positions, 0)
    cos, sin = (table.at[places].get(mode="fill", fill_value=jnp.nan)[:, None] for table in map(jnp.asarray, rope))
    half = cos.shape[-1]
    low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1)


def check_rope(rope: tuple[jax.Array, jax.Array], positions: jax.Array, rows: int, head_dim: int) -> None:
    """Raises unless `rope` rotates heads of H dimensions at the positions of B rows, as far as those are known."""
    if not isinstance(rope, tuple | list) or len(rope) != 2:
        raise TypeError(f"rope: expected a pair (cos, sin), got {checks.described(rope)}")
    cos, sin = rope
    checks.shape("rope[0] (cos)", cos, ("S", "R / 2"))
    checks.shape("rope[1] (sin)", sin, tuple(cos.shape), ", that of cos")
    for name, table in (("rope[0] (cos)", cos), ("rope[1] (sin)", sin)):
        checks.dtype_is(name, table, jnp.float32)
    known_positions, half = cos.shape
    if 2 * half > head_dim:
        raise ValueError(f"rope: expected at most H / 2 = {head_dim // 2} columns, got {half}")
    checks.indices("positions", positions, (rows,), -1, 2**31)
    values = checks.known(positions)
    if values is not None and values.max() >= known_positions:
        raise ValueError(f"rope: expected a row for each position up to {values.max()}, got {known_positions} rows")
