"""The query rows of a program that takes several tokens of a sequence: which token and head each row is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from pallas_kernels.attention.tiles import AttentionShape
from pallas_kernels.common.blocks import scatter


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRows:
    """Row r is head r % P of token r // P of the block, P being the heads of a kv head padded to a power of two.

    Attributes:
        shape, block_t: the call's, and the tokens of a block.
        row, block, kv_head: which sequence of the call, which block of its tokens, and which kv head.
        interpret: whether the kernel is interpreted.
    """

    shape: AttentionShape
    block_t: int
    row: Any
    block: Any
    kv_head: Any
    interpret: bool

    def places(self, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(token, head, whether there is such a one) of the first `size` rows, [size] each."""
        rows, padded = jnp.arange(size, dtype=jnp.int32), self.shape.kept_rows()
        token, head = self.block * self.block_t + rows // padded, rows % padded
        there = (token < self.shape.tokens) & (head < self.shape.heads // self.shape.kv_heads)
        return token, head, there & (rows < self.block_t * padded)

    def lengths(self, ref, size: int) -> jax.Array:
        """Of each row's token, int32 [size] from [rows, T]; a row that is not there attends to no key."""
        token, _, there = self.places(size)
        return plt.load(ref.at[jnp.broadcast_to(self.row, token.shape), token], mask=there, other=0)

    def load(self, ref, size: int) -> jax.Array:
        """The queries, [size, padded H] from [rows, T, K, G, H]; zeros where there are none."""
        index, mask = self._elements(size)
        return plt.load(ref.at[tuple(jnp.broadcast_to(part, mask.shape) for part in index)], mask=mask, other=0.0)

    def store(self, ref, value: jax.Array) -> None:
        """Stores rows of results, as `load` loads those of queries."""
        index, mask = self._elements(value.shape[0])
        scatter(ref, *index, value=value, mask=mask, interpret=self.interpret)

    def _elements(self, size):
        token, head, there = (part[:, None] for part in self.places(size))
        dims = jnp.arange(self.shape.padded_head_dim, dtype=jnp.int32)[None, :]
        return (self.row, token, self.kv_head, head, dims), there & (dims < self.shape.head_dim)
