"""Probability masses in fixed point: sums of integers, whose order does not round."""

from typing import Any

import jax
import jax.numpy as jnp

_ONE = 0x3F800000
_TWO_TO_23 = 0x4B000000
"""As the bits of a float32."""


def digit_bits(vocabulary: int) -> int:
    """How many bits a digit has: as many as V digits can be summed of in 32, and one more bit beside."""
    return 31 - (vocabulary - 1).bit_length()


def digits(logits: jax.Array, largest: jax.Array, bits: int) -> list[jax.Array]:
    """exp(logits - largest), 0 where it is NaN, as three digits of so many bits after the point: uint32, as logits.

    The first may be one more than such a digit, of a weight of 1.
    """
    # (XLA on a CPU may round exp differently at the end of a vector: there, and only where a mass is within 1e-7 of
    # top-p, it shows.)
    weights = jnp.exp(logits - largest)
    # Not NaN, which no integer can hold: of integers, since XLA on a CPU makes a maximum of such a choice of floats.
    in_range = jax.lax.bitcast_convert_type(weights, jnp.uint32) <= jnp.uint32(_ONE)
    weights = jnp.where(in_range, weights, 0.0)
    parts = []
    for _ in range(3):
        weights = weights * 2.0**bits
        part = jnp.floor(weights)
        weights = weights - part
        parts.append(_whole(part, bits))
    return parts


def _whole(part, bits):
    """A whole number up to 2**bits as uint32."""
    if bits > 22:
        return part.astype(jnp.uint32)
    # The last bits of a sum with 2**23. A GPU converts at a fraction of the rate at which it adds.
    return jax.lax.bitcast_convert_type(part + 2.0**23, jnp.uint32) - jnp.uint32(_TWO_TO_23)


def mass(sums: Any, bits: int) -> Any:
    """float32: what the sums of each digit add up to."""
    return sum(one.astype(jnp.float32) * 2.0 ** (-bits * (i + 1)) for i, one in enumerate(sums))


def plus(sums, count, each):
    """The sums with `count` more weights, all of the digits `each`."""
    return [one + count * more for one, more in zip(sums, each)]
