"""Keys: int32 in the order of float32 logits; -0.0 as 0.0, NaN as the largest."""

import jax
import jax.numpy as jnp

MOST = 2**31 - 1
"""The key of NaN."""
NONE = -(2**31)
"""Below all keys."""
MASKED = -0x7F800001
"""The key of -inf, the smallest of all."""


def key_of(logits: jax.Array) -> jax.Array:
    """The keys of float32 logits."""
    bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.int32)
    return jnp.where(logits == logits, _turned(bits), MOST)


def logit_of(keys: jax.Array) -> jax.Array:
    """The logit of a key."""
    return jax.lax.bitcast_convert_type(_turned(keys), jnp.float32)


def _turned(bits):
    """Of negative numbers all bits but the sign, the other way; its own inverse."""
    return bits ^ ((bits >> 31) & MOST)
