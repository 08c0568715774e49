"""What becomes of rotation pairs of queries, keys and values: QK-norm, RoPE, and their places in q and in the cache."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plt

from pallas_kernels.common.blocks import gather, scatter
from pallas_kernels.common.eight_bits import rounded
from pallas_kernels.common.kv_cache import KVCache
from pallas_kernels.common.weights import checked_rotary_dim

KINDS = ("query", "key", "value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """The rotation pairs of a program.

    Attributes:
        index, inside: int32 and bool [block], of all pairs, and whether it is the program's own.
        head: int32 [1, block] or a scalar: queries, then keys, then values. i: int32 [1, block], the place in it.
        kind: one of KINDS where all are of that kind, so that nothing is done for others; None where they may be any.
    """

    index: jax.Array
    inside: jax.Array
    head: jax.Array
    i: jax.Array
    kind: str | None = None

    def may_be(self, kind: str) -> bool:
        return self.kind in (None, kind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where rows of a program belong.

    Attributes:
        position: int32 [m]. page, slot: int32 [m], in the cache of those that are `cached`, bool [m].
        fault: bool [m]; what would be an error, were it known outside the kernel, is NaN.
    """

    position: jax.Array
    page: jax.Array
    slot: jax.Array
    cached: jax.Array
    fault: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `Heads.finish` needs beside the sums.

    Attributes:
        rows: int32 [m]. mask: bool [m, block], of the pairs that there are. turn: cos and sin, float32 [m, block].
        bias: of a pair's two, float32 [m, block]. scales: of keys and of values, float32 [1, block], or scalars where
            all pairs are of one kind. Each None where there is none.
    """

    pairs: Pairs
    rows: jax.Array
    mask: jax.Array
    places: Places
    turn: tuple[jax.Array, ...] | None
    bias: tuple[jax.Array, ...] | None
    scales: list[jax.Array | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads:
    """The sizes of q, of the cache and of the rotation, and how they are stored.

    Attributes:
        heads, kv_heads, head_dim: N, K, H. rotary: pairs of a head that are rotated.
        page_size, pages, sequences, capacity: of the cache. known_positions: of the table of RoPE.
        has_page_table: whether the cache has one.
        eps, norm_offset: of QK-norm.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    page_size: int
    pages: int
    sequences: int
    capacity: int
    known_positions: int
    has_page_table: bool
    eps: float
    norm_offset: float
    interpret: bool

    @classmethod
    def of(
        cls, cache: KVCache, page_table: jax.Array | None, rope: tuple[jax.Array, jax.Array] | None, *,
        heads: int, rotary_dim: int | None, eps: float, norm_offset: float, interpret: bool,
    ) -> "Heads":  # fmt: skip
        pages, kv_heads, page_size, head_dim = cache.k.shape
        capacity = cache.capacity(page_table)
        rotated = rotary_dim is not None or rope is not None
        return cls(
            heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            rotary=checked_rotary_dim(head_dim, rotary_dim) // 2 if rotated else 0,
            page_size=page_size, pages=pages, sequences=pages if page_table is None else page_table.shape[0],
            capacity=capacity, known_positions=capacity if rope is None else rope[0].shape[0],
            has_page_table=page_table is not None, eps=eps, norm_offset=norm_offset, interpret=interpret,
        )  # fmt: skip

    @property
    def half(self) -> int:
        """Pairs of a head."""
        return self.head_dim // 2

    @property
    def count(self) -> int:
        """Of queries, keys and values."""
        return self.heads + 2 * self.kv_heads

    def pairs_from(self, first: Any, limit: Any, block: int) -> Pairs:
        """`block` pairs from `first` on, up to `limit`, of any heads."""
        index = first + jnp.arange(block, dtype=jnp.int32)
        inside = index < (self.count * self.half if limit is None else limit)
        return Pairs(index=index, inside=inside, head=(index // self.half)[None, :], i=(index % self.half)[None, :])

    def pairs_of_head(self, head: Any, block: int, kind: str | None = None) -> Pairs:
        """The pairs of one head, `block` of them with what is padding."""
        i = jnp.arange(block, dtype=jnp.int32)
        return Pairs(index=head * self.half + i, inside=i < self.half, head=head, i=i[None, :], kind=kind)

    def dims(self, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The two dimensions of a pair: rotated ones (i, i + R/2) first, then the rest of the head in halves."""
        if self.rotary in (0, self.half):
            return i, i + self.half
        low = jnp.where(i < self.rotary, i, i + self.rotary)
        return low, low + jnp.where(i < self.rotary, self.rotary, self.half - self.rotary)

    def prepare(
        self, refs: Any, pairs: Pairs, rows: jax.Array, valid: jax.Array, like: Prepared | None = None
    ) -> Prepared:
        """What `finish` needs beside the sums, to be loaded while those are on their way.

        Args:
            refs: of positions, sequence, page_table, cos, sin, bias, k_scale and v_scale; None for what there is not.
            rows, valid: int32 and bool [m], the activation rows, and which of them there are.
            like: of the same rows and of another head of the same kind, which shares what differs by row alone.
        """
        mask = valid[:, None] & pairs.inside[None, :]
        places = self._places(refs, rows, valid) if like is None else like.places
        turn = self._turn(refs, pairs, places.position, mask) if like is None else like.turn
        bias = None
        if refs.bias is not None:
            bias = tuple(gather(refs.bias, pairs.index[None, :], c, mask=mask) for c in (0, 1))
        scales = [
            None
            if ref is None or not pairs.may_be(kind)
            else gather(ref, head, mask=None if pairs.kind else own, other=1.0)
            for ref, kind, (head, own) in zip(
                (refs.k_scale, refs.v_scale), KINDS[1:], self._kv_heads(pairs), strict=True
            )
        ]
        return Prepared(pairs=pairs, rows=rows, mask=mask, places=places, turn=turn, bias=bias, scales=scales)

    def _places(self, refs: Any, rows: jax.Array, valid: jax.Array) -> Places:
        position = plt.load(refs.positions.at[rows], mask=valid, other=-1)
        cached = valid & (position >= 0) & (position < self.capacity)
        page = rows
        if refs.sequence is not None:
            page = plt.load(refs.sequence.at[rows], mask=cached, other=0)
            cached &= (page >= 0) & (page < self.sequences)
        if self.has_page_table:
            page = plt.load(refs.page_table.at[page, position // self.page_size], mask=cached, other=-1)
            cached &= (page >= 0) & (page < self.pages)
        fault = (position >= 0) & ~cached
        if self.known_positions < self.capacity:
            fault |= position >= self.known_positions
        slot = jnp.where(cached, position, 0) % self.page_size
        return Places(position=position, page=page, slot=slot, cached=cached, fault=fault)

    def _turn(self, refs: Any, pairs: Pairs, position: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...] | None:
        """cos and sin of the pairs, 1 and 0 of those that are not rotated; None where none is."""
        if refs.cos is None or pairs.kind == "value":
            return None
        known = jnp.clip(position, 0, self.known_positions - 1)[:, None]
        turned = mask & (pairs.i < self.rotary) & (pairs.head < self.heads + self.kv_heads)
        return (
            gather(refs.cos, known, pairs.i, mask=turned, other=1.0),
            gather(refs.sin, known, pairs.i, mask=turned),
        )

    def _kv_heads(self, pairs: Pairs) -> list[tuple[jax.Array, jax.Array]]:
        """Of the pairs as keys, and as values: the kv head, and which of them are such, int32 and bool [1, block]."""
        heads = [pairs.head - self.heads - i * self.kv_heads for i in range(2)]
        return [(head, pairs.inside[None, :] & (head >= 0) & (head < self.kv_heads)) for head in heads]

    def finish(self, refs: Any, out_refs: tuple, prepared: Prepared, sums: tuple[jax.Array, jax.Array]) -> None:
        """Stores the pairs, float32 [m, block] each, where they belong.

        Args:
            out_refs: q [M, N, H], the cache's keys and values, and if they are wanted by row too, k and v [M, K, H].
        """
        pairs, rows, mask, places = prepared.pairs, prepared.rows[:, None], prepared.mask, prepared.places
        q_ref, k_ref, v_ref, *by_row = out_refs
        a, b = (jnp.where(places.fault[:, None], jnp.nan, x) for x in sums)
        if prepared.bias is not None:
            a, b = a + prepared.bias[0], b + prepared.bias[1]
        if refs.q_norm is not None and pairs.kind != "value":
            a, b = self._normalise(refs, pairs, a, b, mask)
        if prepared.turn is not None:
            cos, sin = prepared.turn
            a, b = a * cos - b * sin, b * cos + a * sin
        store = functools.partial(scatter, interpret=self.interpret)
        page, slot, cached = (x[:, None] for x in (places.page, places.slot, places.cached))
        for dim, value in zip(self.dims(pairs.i), (a, b), strict=True):
            if pairs.may_be("query"):
                store(q_ref, rows, pairs.head, dim, value=value, mask=mask & (pairs.head < self.heads))
            for i, (cache_ref, kind, (kv_head, own), scale) in enumerate(
                zip((k_ref, v_ref), KINDS[1:], self._kv_heads(pairs), prepared.scales, strict=True)
            ):
                if not pairs.may_be(kind):
                    continue
                own, kept = mask & own, value
                if scale is not None:
                    kept = rounded(value, scale, cache_ref.dtype, compiled=not self.interpret)
                store(cache_ref, page, kv_head, slot, dim, value=kept, mask=own & cached)
                if by_row:
                    store(by_row[i], rows, kv_head, dim, value=kept, mask=own)

    def _normalise(self, refs, pairs, a, b, mask):
        """QK-norm of the one head that the pairs are; values pass."""
        squares = jnp.where(mask, a * a + b * b, 0.0)
        scale = lax.rsqrt(jnp.sum(squares, axis=1) / self.head_dim + self.eps)[:, None]
        is_q = pairs.head < self.heads
        is_k = (pairs.head >= self.heads) & (pairs.head < self.heads + self.kv_heads)

        def gain(dim):
            weights = jnp.where(
                is_q, gather(refs.q_norm, dim, mask=mask & is_q), gather(refs.k_norm, dim, mask=mask & is_k)
            )
            return jnp.where(is_q | is_k, scale * (weights + self.norm_offset), 1.0)

        low, high = self.dims(pairs.i)
        return a * gain(low), b * gain(high)
