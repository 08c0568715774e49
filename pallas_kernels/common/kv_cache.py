"""The KV cache of one layer: pages of keys and values, contiguous caches being those of one page per sequence."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of one layer.

    Attributes:
        k, v: [P, K, Z, H]: pages, kv heads, positions of a page, head dimension. With a page table a sequence's
            position p lies in page `page_table[sequence, p // Z]` at `p % Z`; without one, page i is sequence i and Z
            its capacity (a contiguous cache).
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
        """Positions that one sequence can hold."""
        return self.page_size * (1 if page_table is None else page_table.shape[1])


def locate(cache_k: jax.Array, positions: jax.Array, sequence: jax.Array | None, page_table: jax.Array | None):
    """(page, slot) of each position, int32 [B] each; the page of a position outside the cache is out of bounds."""
    sequence = jnp.arange(positions.shape[0]) if sequence is None else sequence
    page_size = cache_k.shape[2]
    if page_table is None:
        page, inside = sequence, (positions >= 0) & (positions < page_size)
    else:
        inside = (positions >= 0) & (positions < page_size * page_table.shape[1])
        page = page_table[sequence, jnp.where(inside, positions, 0) // page_size]
        inside &= page >= 0
    return jnp.where(inside, page, cache_k.shape[0]), jnp.where(inside, positions, 0) % page_size
