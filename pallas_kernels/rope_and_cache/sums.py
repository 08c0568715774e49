"""Rotation pairs as a program loads them, from a product or from its partial sums."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.common.blocks import gather, load_masked
from pallas_kernels.rope_and_cache.heads import Pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sums:
    """How pairs lie in memory.

    Attributes:
        splits: partial sums of each. dtype: of a number. planes: whether [splits, 2, M, O], not [splits, M, O, 2].
        words: whether the two of a pair are seen as one 32-bit word; the backend would load them one by one.
    """

    splits: int
    dtype: Any
    planes: bool
    words: bool

    @classmethod
    def of(cls, parts: jax.Array, planes: bool, *, words: bool) -> "Sums":
        """Those of `parts`, in words if wanted and if they can be."""
        splits = parts.shape[0]
        words = words and splits == 1 and not planes and parts.dtype.itemsize == 2
        return cls(splits=splits, dtype=parts.dtype, planes=planes, words=words)

    def operand(self, parts: jax.Array) -> jax.Array:
        """What the kernel takes in place of `parts`: the same bytes, which XLA does not copy."""
        return lax.bitcast_convert_type(parts, jnp.uint32) if self.words else parts

    def load(self, ref: Any, pairs: Pairs, rows: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The two of each pair, float32 [m, block]; zeros where the mask is False."""
        index, place = pairs.index[None, :], rows[:, None]
        if self.words:
            at = (jnp.broadcast_to(jnp.asarray(i, jnp.int32), mask.shape) for i in (0, place, index))
            return self._halves(load_masked(ref.at[tuple(at)], mask))

        def part(split, c):
            where = (split, c, place, index) if self.planes else (split, place, index, c)
            return gather(ref, *where, mask=mask)

        a, b = (sum((part(split, c) for split in range(1, self.splits)), start=part(0, c)) for c in (0, 1))
        return a, b

    def _halves(self, words: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The numbers in the lower and in the upper halves of words, float32."""
        if self.dtype == jnp.bfloat16:  # the upper half of a float32
            a, b = words << 16, words >> 16 << 16
            return lax.bitcast_convert_type(a, jnp.float32), lax.bitcast_convert_type(b, jnp.float32)
        a, b = (lax.bitcast_convert_type(half.astype(jnp.uint16), self.dtype) for half in (words, words >> 16))
        return a.astype(jnp.float32), b.astype(jnp.float32)
