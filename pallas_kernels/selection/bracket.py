"""The search for the last key that is kept, between two that close in on it.

A condition holds of a key where the keys at or above it are enough, by what their parts add up to (uint32, one sum or
several); where it does not hold, it does not hold of larger ones. Each step halves the numbers between the two, and
goes on to the next key that is there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.selection.keys import NONE


class Bracket(NamedTuple):
    """The last key kept is in [low, high]; `above` is what the parts of the keys above `high` add up to."""

    low: Any
    high: Any
    above: tuple[Any, ...]

    def is_wider(self, than: int) -> jax.Array:
        """Whether `high` is more than so much above `low`; their distance may take 32 bits."""
        distance = self.high.astype(jnp.uint32) - self.low.astype(jnp.uint32)
        return (self.low < self.high) & (distance > than)

    @property
    def middle(self) -> jax.Array:
        """Above `low`, and not above `high`."""
        return (self.low | self.high) - ((self.low ^ self.high) >> 1)


class Measured(NamedTuple):
    """Of keys in a bracket, lane by lane: the sums of those at or above its middle; the least of them, inverted; the
    most of the others."""

    sums: tuple[jax.Array, ...]
    inverted_least: jax.Array
    most: jax.Array

    @classmethod
    def nothing(cls, lanes: int, parts: int) -> "Measured":
        none = jnp.full(lanes, NONE, jnp.int32)
        return cls((jnp.zeros(lanes, jnp.uint32),) * parts, none, none)

    def more(self, keys: jax.Array, parts: tuple[jax.Array, ...], inside: jax.Array, middle: jax.Array) -> "Measured":
        """With more keys, of which those inside count."""
        upper = inside & (keys >= middle)
        return Measured(
            tuple(total + jnp.where(upper, part, jnp.uint32(0)) for total, part in zip(self.sums, parts)),
            jnp.maximum(self.inverted_least, jnp.where(upper, ~keys, NONE)),
            jnp.maximum(self.most, jnp.where(inside & ~upper, keys, NONE)),
        )


Enough = Callable[[tuple[jax.Array, ...]], jax.Array]


def narrowed(bracket: Bracket, measured: Measured, enough: Enough) -> Bracket:
    """The bracket after a step."""
    low, high, above = bracket
    sums = tuple(old + jnp.sum(new) for old, new in zip(above, measured.sums))
    holds = enough(sums)
    nearest = jnp.max(jnp.where(holds, measured.inverted_least, measured.most))
    return Bracket(
        jnp.where(holds, ~nearest, low),
        jnp.where(holds, high, jnp.maximum(low, nearest)),
        tuple(jnp.where(holds, old, new) for old, new in zip(above, sums)),
    )


def closed(
    bracket: Bracket, keys: jax.Array, parts: tuple[jax.Array, ...], enough: Enough, *, within: int = 0
) -> Bracket:
    """The bracket with its ends not farther apart than that: of keys int32 [lanes], all that there are in it."""

    def step(bracket):
        nothing = Measured.nothing(keys.shape[0], len(parts))
        return narrowed(bracket, nothing.more(keys, parts, keys <= bracket.high, bracket.middle), enough)

    return lax.while_loop(lambda bracket: bracket.is_wider(within), step, bracket)
