"""The KV cache of one layer: pages of keys and values, contiguous caches being those of one page per sequence."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.common import checks
from pallas_kernels.common.eight_bits import KV_FORMATS, check_scale, format_of, rounded
from pallas_kernels.common.quantised import FORMATS

CACHE_DTYPES = (*checks.DTYPES, *(jnp.dtype(FORMATS[name]).name for name in KV_FORMATS))
PAGE_TABLE = ("sequences", "pages of a sequence")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of one layer; a pytree. Donate it where it is updated, or XLA copies it.

    Attributes:
        k, v: [P, K, Z, H]: pages, kv heads, positions of a page, head dimension; each float8_e4m3fn or int8, or
            bfloat16, float16 or float32, of one dtype where both are. With a page table a sequence's position p lies
            in page `page_table[sequence, p // Z]` at `p % Z`; without one, page i is sequence i and Z its capacity (a
            contiguous cache).
        k_scale, v_scale: float32 [K] of what is in 8 bits, which stands for `stored * scale[head]`; else None. Numbers
            beyond the largest that is stored (448 in fp8, 127 in int8) become that one. NaN is lost: int8 has 0 in its
            place, and from fp8 the kernels may read 480.
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None

    @classmethod
    def zeros(
        cls,
        pages: int,
        kv_heads: int,
        page_size: int,
        head_dim: int,
        dtype,
        *,
        v_dtype=None,
        k_scale: jax.Array | None = None,
        v_scale: jax.Array | None = None,
    ) -> "KVCache":
        """An empty cache of `pages` pages of `page_size` positions.

        Args:
            dtype: of keys and values; with `v_dtype`, of keys alone.
            k_scale, v_scale: float32 [K] of what is in 8 bits; None for 1.

        Raises:
            ValueError, TypeError: a size is not a whole number above 0, a dtype not one of the kernels', or a scale not
                such an array.
        """
        sizes = dict(pages=pages, kv_heads=kv_heads, page_size=page_size, head_dim=head_dim)
        shape = tuple(checks.whole(name, size, 1) for name, size in sizes.items())
        names = [checks.one_of_dtypes("dtype", dtype, CACHE_DTYPES)]
        names.append(names[0] if v_dtype is None else checks.one_of_dtypes("v_dtype", v_dtype, CACHE_DTYPES))
        scales = [
            jnp.ones(kv_heads, jnp.float32) if scale is None and format_of(name) else scale
            for name, scale in zip(names, (k_scale, v_scale), strict=True)
        ]
        k, v = (jnp.zeros(shape, name) for name in names)
        cache = cls(k=k, v=v, k_scale=scales[0], v_scale=scales[1])
        cache.check()
        return cache

    @property
    def page_size(self) -> int:
        return self.k.shape[2]

    def capacity(self, page_table: jax.Array | None) -> int:
        """Positions that one sequence can hold, given the page table, int32 [sequences, pages], or None."""
        if page_table is not None:
            checks.shape("page_table", page_table, PAGE_TABLE)
        return self.page_size * (1 if page_table is None else page_table.shape[1])

    def check(self) -> None:
        """Raises unless keys and values are of one shape, their dtypes go together, and those of 8 bits have scales."""
        checks.shape("cache.k", self.k, ("P", "K", "Z", "H"))
        checks.shape("cache.v", self.v, tuple(self.k.shape), ", that of cache.k")
        for name, array in (("cache.k", self.k), ("cache.v", self.v)):
            if str(array.dtype) not in CACHE_DTYPES:
                raise TypeError(f"{name}: expected dtype {', '.join(CACHE_DTYPES)}, got {array.dtype}")
        if format_of(self.k.dtype) is None and format_of(self.v.dtype) is None:
            checks.same_dtype("cache.v", self.v, "cache.k", self.k)
        check_scale("cache.k", self.k, self.k_scale)
        check_scale("cache.v", self.v, self.v_scale)

    def check_dtype(self, other_name: str, other: jax.Array) -> None:
        """Raises unless what is not of 8 bits has the dtype of `other`."""
        for name, array in (("cache.k", self.k), ("cache.v", self.v)):
            if format_of(array.dtype) is None:
                checks.same_dtype(name, array, other_name, other)

    def rounded(self, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [..., K, H], any float dtype, as they are stored: rounded, those of 8 bits in units of their
        scale."""
        k, v = (
            x.astype(stored.dtype) if scale is None else rounded(x.astype(jnp.float32), scale[:, None], stored.dtype)
            for x, stored, scale in ((k, self.k, self.k_scale), (v, self.v, self.v_scale))
        )
        return k, v

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
            k, v: [B, K, H], any float dtype; they are rounded to the cache's, to the nearest in units of its scales.
            positions: int32 [B], each row's in its sequence; -1 writes nothing. One beyond the cache is an error where
                it is known, and writes nothing under jit.
            sequence: int32 [B], the sequence of each row; None for row i of sequence i.
            page_table: int32 [sequences, pages of a sequence], or None for a contiguous cache; -1 where there is no
                page: an error where a row is known to lie there, and nothing is written there under jit.

        Raises:
            ValueError, TypeError: an argument's shape, dtype or known value is wrong; the message names it.
        """
        self.check()
        checks.shape("k", k, ("B", self.k.shape[1], self.k.shape[3]))
        checks.floating("k", k)
        checks.shape("v", v, tuple(k.shape), ", that of k")
        checks.floating("v", v)
        check_places(self, positions, sequence, page_table, k.shape[0])
        return self.placed(*self.rounded(k, v), positions, sequence, page_table)

    def placed(self, k, v, positions, sequence, page_table) -> "KVCache":
        """As `write`, of keys and values that are rounded already."""
        page, slot = self.locate(positions, sequence, page_table)
        return dataclasses.replace(
            self,
            k=self.k.at[page, :, slot].set(k, mode="drop"),
            v=self.v.at[page, :, slot].set(v, mode="drop"),
        )

    def locate(
        self, positions: jax.Array, sequence: jax.Array | None, page_table: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """(page, slot) of each position, int32 [B] each; the page of one that has no place in the cache is P."""
        pages = self.k.shape[0]
        inside = (positions >= 0) & (positions < self.capacity(page_table))
        if sequence is None:
            sequence = jnp.arange(positions.shape[0], dtype=jnp.int32)
        else:
            inside &= (sequence >= 0) & (sequence < _sequences(self, page_table))
        page = sequence
        if page_table is not None:
            page = page_table[sequence, jnp.where(inside, positions, 0) // self.page_size]
            inside &= (page >= 0) & (page < pages)
        return jnp.where(inside, page, pages), jnp.where(inside, positions, 0) % self.page_size


def check_places(
    cache: KVCache, positions: jax.Array, sequence: jax.Array | None, page_table: jax.Array | None, rows: int
) -> None:
    """Raises unless every row has a place of its own in the cache, or none by position -1, as far as that is known."""
    check_owners(cache, sequence, page_table, rows)
    checks.indices("positions", positions, (rows,), -1, cache.capacity(page_table))
    at, owner = checks.known(positions), _known_owners(sequence, rows)
    if at is None or owner is None:
        return
    check_pages(cache, page_table, owner, at, at)
    places = sorted(zip(owner[at >= 0].tolist(), at[at >= 0].tolist()))
    for one, other in itertools.pairwise(places):
        if one == other:
            raise ValueError(
                f"positions: expected rows of different places, got position {one[1]} of sequence {one[0]} twice"
            )


def check_owners(cache: KVCache, sequence: jax.Array | None, page_table: jax.Array | None, rows: int) -> None:
    """Raises unless `sequence` says of each row which sequence of the cache it belongs to."""
    if page_table is not None:
        checks.indices("page_table", page_table, PAGE_TABLE, -1, cache.k.shape[0])
    sequences = _sequences(cache, page_table)
    if sequence is not None:
        checks.indices("sequence", sequence, (rows,), 0, sequences)
    elif rows > sequences:
        raise ValueError(f"sequence: needed where there are more rows ({rows}) than sequences ({sequences})")


def check_lengths(
    cache: KVCache,
    lengths: jax.Array,
    sequence: jax.Array | None,
    page_table: jax.Array | None,
    rows: int,
    window: int | None,
) -> None:
    """Raises unless the cache holds as many positions of each row's sequence, as far as that is known."""
    check_owners(cache, sequence, page_table, rows)
    capacity = cache.capacity(page_table)
    checks.indices("lengths", lengths, (rows,), 0, capacity + 1)
    count, owner = checks.known(lengths), _known_owners(sequence, rows)
    if count is not None and owner is not None:
        check_pages(cache, page_table, owner, np.maximum(count - (window or capacity), 0), count - 1)


def check_pages(cache: KVCache, page_table: jax.Array | None, owner, first, last) -> None:
    """Raises where a row's positions from `first` to `last`, int [B] each, are known to have no page."""
    table = None if page_table is None else checks.known(page_table)
    if table is None:
        return
    pages = np.arange(table.shape[1])
    used = (pages >= (first // cache.page_size)[:, None]) & (pages <= (last // cache.page_size)[:, None])
    for row, page in np.argwhere(used & (table[owner] < 0)):
        at = max(int(first[row]), int(page) * cache.page_size)
        raise ValueError(
            f"page_table: expected a page at [{owner[row]}, {page}], where position {at} of row {row} lies, got -1"
        )


def _known_owners(sequence: jax.Array | None, rows: int) -> np.ndarray | None:
    return np.arange(rows) if sequence is None else checks.known(sequence)


def _sequences(cache: KVCache, page_table: jax.Array | None) -> int:
    return cache.k.shape[0] if page_table is None else page_table.shape[0]
