"""The Triton kernel of qkv: each block is of whole rotation pairs, so its program rotates and stores what it sums."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plt

from pallas_kernels.common.blocks import gather, scatter
from pallas_kernels.common.kv_cache import KVCache
from pallas_kernels.common.launch import launch
from pallas_kernels.common.prefetch import flat_values
from pallas_kernels.common.prenorm import Norm, prenorm
from pallas_kernels.common.stream import Block, Stream, programs_of
from pallas_kernels.common.weights import checked_rotary_dim


class _Pairs:
    """The rotation pairs of a block, int32 and bool [1, block_n]: their heads and their dimensions.

    Attributes:
        index, inside: [block_n], of all pairs, and whether it is the block's own.
        head, i: the pair's head (queries, then keys, then values), and its place in it.
        low, high: the two dimensions: rotated ones (i, i + R/2) first, then the rest of the head in halves.
    """

    def __init__(self, block: Block, block_n: int, outputs: int, heads: int, kv_heads: int, half: int, rotary: int):
        self.index = block.first + jnp.arange(block_n, dtype=jnp.int32)
        self.inside = self.index < (outputs if block.limit is None else block.limit)
        self.head, self.i = (self.index // half)[None, :], (self.index % half)[None, :]
        self.is_q = self.head < heads
        self.is_k = (self.head >= heads) & (self.head < heads + kv_heads)
        i = self.i
        self.low = jnp.where(i < rotary, i, i + rotary) if rotary else i
        self.high = self.low + jnp.where(i < rotary, rotary, half - rotary) if rotary else i + half


def qkv(options, *, x, norm, weight, cache, positions, sequence, page_table, rope, q_norm, k_norm, prefetch):
    """As `api.qkv`, with every optional array present or None."""
    shape, tiles = options.shape, options.tiles
    fused = Norm(eps=options.eps, offset=options.norm_offset)
    activations = prenorm(fused, x, norm, tiles, shape.dtype, interpret=options.interpret)
    heads, (_, kv_heads, page_size, head_dim) = options.num_heads, cache.k.shape
    half, block_n = head_dim // 2, tiles.block_n
    whole_heads = q_norm is not None  # its sum spans a head, so a block is a head
    block_stride = half if whole_heads else None
    capacity = page_size * (1 if page_table is None else page_table.shape[1])
    sequences = cache.k.shape[0] if page_table is None else page_table.shape[0]
    known_positions = capacity if rope is None else rope[0].shape[0]
    rotary = 0 if weight.rotary_dim is None and rope is None else checked_rotary_dim(head_dim, weight.rotary_dim) // 2

    def kernel(refs, q_ref, k_ref, v_ref):  # the cache is written through its output refs
        stream = Stream(
            x_ref=refs.x, norm_ref=refs.norm, w_ref=refs.w, shape=shape, tiles=tiles, norm=activations.norm,
            block_stride=block_stride, interpret=options.interpret, squares_ref=refs.squares,
            prefetch_ref=refs.prefetch, prefetch_bytes=options.prefetch_bytes,
        )  # fmt: skip

        def before(block):
            """What the finish of each group of rows needs."""
            pairs = _Pairs(block, block_n, shape.outputs, heads, kv_heads, half, rotary)
            return [of_rows(pairs, rows, valid) for rows, valid in stream.row_groups()]

        def of_rows(pairs, rows, valid):
            mask = valid[:, None] & pairs.inside[None, :]
            position = plt.load(refs.positions.at[rows], mask=valid, other=-1)
            cached = valid & (position >= 0) & (position < capacity)
            page = rows
            if refs.sequence is not None:
                page = plt.load(refs.sequence.at[rows], mask=cached, other=0)
                cached &= (page >= 0) & (page < sequences)
            if refs.page_table is not None:
                page = plt.load(refs.page_table.at[page, position // page_size], mask=cached, other=-1)
                cached &= (page >= 0) & (page < cache.k.shape[0])
            # What would be an error, were it known outside the kernel, is NaN.
            fault = (position >= 0) & ~cached
            if known_positions < capacity:
                fault |= position >= known_positions
            slot = jnp.where(cached, position, 0) % page_size
            turn = bias = None
            if rope is not None:
                known = jnp.clip(position, 0, known_positions - 1)[:, None]
                turned = mask & (pairs.i < rotary) & (pairs.is_q | pairs.is_k)
                turn = (
                    gather(refs.cos, known, pairs.i, mask=turned, other=1.0),
                    gather(refs.sin, known, pairs.i, mask=turned),
                )
            if refs.bias is not None:
                bias = tuple(gather(refs.bias, pairs.index[None, :], c, mask=mask) for c in (0, 1))
            return pairs, rows, mask, cached, fault, page, slot, turn, bias

        def normalise(pairs, a, b, mask):
            """QK-norm of the one head that the block is; values pass."""
            squares = jnp.where(mask, a * a + b * b, 0.0)
            scale = lax.rsqrt(jnp.sum(squares, axis=1) / head_dim + options.eps)[:, None]

            def gain(dim):
                weights = jnp.where(
                    pairs.is_q,
                    gather(refs.q_norm, dim, mask=mask & pairs.is_q),
                    gather(refs.k_norm, dim, mask=mask & pairs.is_k),
                )
                return jnp.where(pairs.is_q | pairs.is_k, scale * (weights + options.norm_offset), 1.0)

            return a * gain(pairs.low), b * gain(pairs.high)

        def finish(block, prepared, sums):
            (pairs, rows, mask, cached, fault, page, slot, turn, bias), (a, b) = prepared, sums
            a, b = (jnp.where(fault[:, None], jnp.nan, x) for x in (a, b))
            if bias is not None:
                a, b = a + bias[0], b + bias[1]
            if whole_heads:
                a, b = normalise(pairs, a, b, mask)
            if turn is not None:
                cos, sin = turn
                a, b = a * cos - b * sin, b * cos + a * sin
            for dim, value in ((pairs.low, a), (pairs.high, b)):
                store = functools.partial(scatter, value=value, interpret=options.interpret)
                store(q_ref, rows[:, None], pairs.head, dim, mask=mask & pairs.is_q)
                for cache_ref, start in ((k_ref, heads), (v_ref, heads + kv_heads)):
                    kv_head = pairs.head - start
                    inside_cache = mask & cached[:, None] & (kv_head >= 0) & (kv_head < kv_heads)
                    store(cache_ref, page[:, None], kv_head, slot[:, None], dim, mask=inside_cache)

        stream.run(finish, before)

    cos, sin = (None, None) if rope is None else rope
    q, k, v = launch(
        kernel,
        name="qkv",
        grid=(programs_of(shape, tiles, block_stride),),
        inputs=activations.inputs()
        | dict(
            w=weight.values,
            bias=weight.bias,
            positions=positions,
            sequence=sequence,
            page_table=page_table,
            cos=cos,
            sin=sin,
            q_norm=q_norm,
            k_norm=k_norm,
            k=cache.k,
            v=cache.v,
            prefetch=flat_values(prefetch),
        ),
        outputs=[
            jax.ShapeDtypeStruct((shape.rows, heads, head_dim), shape.dtype),
            jax.ShapeDtypeStruct(cache.k.shape, cache.k.dtype),
            jax.ShapeDtypeStruct(cache.v.shape, cache.v.dtype),
        ],
        aliases=dict(k=1, v=2),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=options.interpret,
    )
    return q, KVCache(k=k, v=v)
