"""The arithmetic that references, kernels and models share."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.common.weights import DenseWeight

ACTIVATIONS = ("silu", "gelu_tanh")


def rms_norm(x: jax.Array, weight: jax.Array | None, eps: float, offset: float = 0.0) -> jax.Array:
    """RMSNorm over the last axis (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps) * (weight + offset).

    Args:
        x: [..., D], any float dtype. weight: [D], or None for 1. eps: added to the mean square.
        offset: added to the weight (1.0 for Gemma).

    Returns:
        float32 [..., D].
    """
    x = x.astype(jnp.float32)
    x = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x if weight is None else x * (weight.astype(jnp.float32) + offset)


def activate(name: str, x: jax.Array) -> jax.Array:
    """The activation of a gated MLP, of float32 x [...]: 'silu', or 'gelu_tanh' (Hendrycks and Gimpel 2016)."""
    if name == "silu":
        return x / (1.0 + jnp.exp(-x))
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1.0 + jnp.exp(-2.0 * inner))


def cap(x: jax.Array, soft_cap: float | None) -> jax.Array:
    """Soft cap of Gemma 2: soft_cap * tanh(x / soft_cap)."""
    return x if soft_cap is None else soft_cap * jnp.tanh(x / soft_cap)


def project(x: jax.Array, weight: DenseWeight) -> jax.Array:
    """x times a packed weight, plus its bias: the plain form of a projection, by XLA.

    Args:
        x: [..., I], any float dtype; rounded to the weight's dtype. weight: of shape [O, I] or [O, 2, I].

    Returns:
        float32 [..., O] or [..., O, 2]; sums are float32.
    """
    values = weight.values
    precision = lax.Precision.HIGHEST if values.dtype == jnp.float32 else None
    y = lax.dot_general(
        x.astype(values.dtype).reshape(-1, x.shape[-1]),
        values.reshape(-1, values.shape[-1]),
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    ).reshape(-1, *values.shape[:-1])
    if weight.bias is not None:
        y = y + weight.bias.astype(jnp.float32)
    return y.reshape(*x.shape[:-1], *y.shape[1:])


def rotate(x: jax.Array, positions: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """RoPE (Su et al. 2021), the two halves of the rotated dimensions against each other.

    Args:
        x: float32 [B, heads, H]; dimensions past R pass as they are. positions: int32 [B], clipped to the table.
        rope: (cos, sin), float32 [S, R / 2] each.

    Returns:
        float32 [B, heads, H].
    """
    cos, sin = (table[jnp.clip(positions, 0, table.shape[0] - 1)][:, None].astype(jnp.float32) for table in rope)
    half = cos.shape[-1]
    low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1)
