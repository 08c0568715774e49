"""The arithmetic that references and kernels share."""

import jax
import jax.numpy as jnp
from jax import lax

ACTIVATIONS = ("silu", "gelu_tanh")


def rms_norm(x: jax.Array, weight: jax.Array | None, eps: float, offset: float) -> jax.Array:
    """RMSNorm over the last axis in float32 (Zhang and Sennrich 2019): x / rms(x) * (weight + offset)."""
    x = x.astype(jnp.float32)
    x = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x if weight is None else x * (weight.astype(jnp.float32) + offset)


def activate(name: str, x: jax.Array) -> jax.Array:
    """SiLU, or GELU by its tanh form (Hendrycks and Gimpel 2016), of float32 x; lowers in every backend."""
    if name == "silu":
        return x / (1.0 + jnp.exp(-x))
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1.0 + jnp.exp(-2.0 * inner))


def cap(x: jax.Array, soft_cap: float | None) -> jax.Array:
    """Soft cap of Gemma 2: soft_cap * tanh(x / soft_cap)."""
    return x if soft_cap is None else soft_cap * jnp.tanh(x / soft_cap)


def project(x: jax.Array, rows: jax.Array) -> jax.Array:
    """x [M, I] times rows [R, I] or [R, 2, I]: float32 [M, R] or [M, R, 2], operands in their own dtype."""
    precision = lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None
    flat = rows.reshape(-1, rows.shape[-1])
    out = lax.dot_general(
        x.astype(rows.dtype), flat, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
    return out.reshape(x.shape[0], *rows.shape[:-1])
