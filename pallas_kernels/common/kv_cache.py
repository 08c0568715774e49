"""The KV cache of one layer: pages of keys and values, contiguous caches being those of one page per sequence."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of one layer; a pytree. Donate it where it is updated, or XLA copies it.

    Attributes:
        k, v: [P, K, Z, H]: pages, kv heads, positions of a page, head dimension; one dtype. With a page table a
            sequence's position p lies in page `page_table[sequence, p // Z]` at `p % Z`; without one, page i is
            sequence i and Z its capacity (a contiguous cache).
    """

    k: jax.Array
    v: jax.Array

    @classmethod
    def zeros(cls, pages: int, kv_heads: int, page_size: int, head_dim: int, dtype) -> "KVCache":
        """An empty cache of `pages` pages of `page_size` positions."""
        shape = (pages, kv_heads, page_size, head_dim)
        return cls(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype))

    @property
    def page_size(self) -> int:
        return self.k.shape[2]

    def capacity(self, page_table: jax.Array | None) -> int:
        """Positions that one sequence can hold, given the page table, int32 [sequences, pages], or None."""
        return self.page_size * (1 if page_table is None else page_table.shape[1])

    def write(
        self,
        k: jax.Array,
        v: jax.Array,
        *,
        positions: jax.Array,
        sequence: jax.Array | None = None,
        page_table: jax.Array | None = None,
    ) -> "KVCache":
        """The cache with the keys and values of some rows written, by XLA.

        Args:
            k, v: [B, K, H], any float dtype; they are rounded to the cache's.
            positions: int32 [B], each row's in its sequence; one outside the cache writes nothing.
            sequence: int32 [B], the sequence of each row; None for row i of sequence i.
            page_table: int32 [sequences, pages of a sequence], -1 where there is no page (nothing is written there),
                or None for a contiguous cache.
        """
        page, slot = self._locate(positions, sequence, page_table)
        return KVCache(
            k=self.k.at[page, :, slot].set(k.astype(self.k.dtype), mode="drop"),
            v=self.v.at[page, :, slot].set(v.astype(self.v.dtype), mode="drop"),
        )

    def _locate(self, positions, sequence, page_table):
        """(page, slot) of each position, int32 [B] each; the page of a position outside the cache is out of bounds."""
        sequence = jnp.arange(positions.shape[0]) if sequence is None else sequence
        inside = (positions >= 0) & (positions < self.capacity(page_table))
        page = sequence
        if page_table is not None:
            page = page_table[sequence, jnp.where(inside, positions, 0) // self.page_size]
            inside &= page >= 0
        return jnp.where(inside, page, self.k.shape[0]), jnp.where(inside, positions, 0) % self.page_size
