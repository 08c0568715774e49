"""Keys: int32 in the order of float32 logits; -0.0 as 0.0, NaN as the largest."""

import jax
import jax.numpy as jnp

MOST = 2**31 - 1
"""The key of NaN."""
NONE = -(2**31)
"""Below all keys."""
_INFINITE = 0x7F800000
MASKED = -_INFINITE - 1
"""The key of -inf, the smallest of all."""


def key_of(logits: jax.Array) -> jax.Array:
    """The keys of float32 logits."""
    bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.int32)
    return jnp.where(logits == logits, _turned(bits), MOST)


def raised(logits: jax.Array) -> jax.Array:
    """uint32 in the order of the keys, cheaper to make: 0 for -inf, -0.0 below 0.0, NaN in any order at the top."""
    return (_turned(jax.lax.bitcast_convert_type(logits, jnp.int32)) - MASKED).astype(jnp.uint32)


def key_of_raised(raised: jax.Array) -> jax.Array:
    """The key of the logit."""
    key = raised.astype(jnp.int32) + MASKED
    return jnp.where(raised > jnp.uint32(2 * _INFINITE + 1), MOST, jnp.where(key == -1, 0, key))


def logit_of(keys: jax.Array) -> jax.Array:
    """The logit of a key."""
    return jax.lax.bitcast_convert_type(_turned(keys), jnp.float32)


def _turned(bits):
    """Of negative numbers all bits but the sign, the other way; its own inverse."""
    return bits ^ ((bits >> 31) & MOST)
