"""The Triton kernel of qkv: each program owns whole rotation pairs, so it rotates and stores what it sums."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.common.blocks import gather, scatter
from pallas_kernels.common.kv_cache import KVCache
from pallas_kernels.common.launch import launch
from pallas_kernels.common.norm import Norm, ahead
from pallas_kernels.common.prefetch import flat_rows
from pallas_kernels.common.stream import Stream


def qkv(options, *, x, norm, weight, cache, positions, sequence, page_table, rope, q_norm, k_norm, prefetch):
    """As `api.qkv`, with every optional array present or None."""
    shape, tiles = options.shape, options.tiles
    fused = Norm(eps=options.eps, offset=options.norm_offset)
    fused, x, norm = ahead(fused, x, norm, tiles, interpret=options.interpret)
    heads, (_, kv_heads, page_size, head_dim) = options.num_heads, cache.k.shape
    half, block_n = head_dim // 2, tiles.block_n
    whole_heads = q_norm is not None  # its sum spans a head, so one program owns one head
    grid = heads + 2 * kv_heads if whole_heads else pl.cdiv(shape.outputs, block_n)
    ragged = block_n != half if whole_heads else shape.outputs % block_n != 0
    capacity = page_size * (1 if page_table is None else page_table.shape[1])
    known_positions, rotary = (0, 0) if rope is None else rope[0].shape

    def kernel(refs, q_ref, k_ref, v_ref):  # the cache is written through its output refs
        first = pl.program_id(0) * (half if whole_heads else block_n)
        limit = None
        if ragged:
            limit = first + half if whole_heads else shape.outputs
        stream = Stream(
            x_ref=refs.x, norm_ref=refs.norm, w_ref=refs.w, first_row=first, limit=limit, shape=shape, tiles=tiles,
            norm=fused, interpret=options.interpret, prefetch_ref=refs.prefetch, prefetch_bytes=options.prefetch_bytes,
        )  # fmt: skip
        pair = first + jnp.arange(block_n, dtype=jnp.int32)
        inside = pair < (shape.outputs if limit is None else limit)
        head, i = (pair // half)[None, :], (pair % half)[None, :]  # i: the pair's place in its head
        is_q, is_k = head < heads, (head >= heads) & (head < heads + kv_heads)
        # Dimensions of the pair: rotated ones (i, i + R/2) first, then the rest of the head in halves.
        low = jnp.where(i < rotary, i, i + rotary) if rotary else i
        high = low + jnp.where(i < rotary, rotary, half - rotary) if rotary else i + half

        def before(rows, valid):
            """What the finish of these rows needs, loaded while the weights are on their way."""
            mask = valid[:, None] & inside[None, :]
            position = plt.load(refs.positions.at[rows], mask=valid, other=-1)
            cached = valid & (position >= 0) & (position < capacity)
            page = rows if refs.sequence is None else plt.load(refs.sequence.at[rows], mask=cached, other=0)
            if refs.page_table is not None:
                page = plt.load(refs.page_table.at[page, position // page_size], mask=cached, other=-1)
                cached &= (page >= 0) & (page < cache.k.shape[0])
            slot = jnp.where(cached, position, 0) % page_size
            turn = bias = None
            if rotary:
                known = jnp.clip(position, 0, known_positions - 1)[:, None]
                turned = mask & (i < rotary) & (is_q | is_k)
                turn = gather(refs.cos, known, i, mask=turned, other=1.0), gather(refs.sin, known, i, mask=turned)
            if refs.bias is not None:
                bias = tuple(gather(refs.bias, pair[None, :], c, mask=mask) for c in (0, 1))
            return rows, mask, cached, page, slot, turn, bias

        def normalise(a, b, mask):
            """QK-norm of the one head that the program owns; values pass."""
            squares = jnp.where(mask, a * a + b * b, 0.0)
            scale = lax.rsqrt(jnp.sum(squares, axis=1) / head_dim + options.eps)[:, None]

            def gain(dim):
                weights = jnp.where(
                    is_q, gather(refs.q_norm, dim, mask=mask & is_q), gather(refs.k_norm, dim, mask=mask & is_k)
                )
                return jnp.where(is_q | is_k, scale * (weights + options.norm_offset), 1.0)

            return a * gain(low), b * gain(high)

        def finish(rows, mask, cached, page, slot, turn, bias, a, b):
            if bias is not None:
                a, b = a + bias[0], b + bias[1]
            if whole_heads:
                a, b = normalise(a, b, mask)
            if turn is not None:
                cos, sin = turn
                a, b = a * cos - b * sin, b * cos + a * sin
            for dim, value in ((low, a), (high, b)):
                store = functools.partial(scatter, value=value, interpret=options.interpret)
                store(q_ref, rows[:, None], head, dim, mask=mask & is_q)
                for cache_ref, start in ((k_ref, heads), (v_ref, heads + kv_heads)):
                    kv_head = head - start
                    inside_cache = mask & cached[:, None] & (kv_head >= 0) & (kv_head < kv_heads)
                    store(cache_ref, page[:, None], kv_head, slot[:, None], dim, mask=inside_cache)

        prepared = [before(rows, valid) for rows, valid in stream.row_groups()]
        for ready, (a, b) in zip(prepared, stream.sums(), strict=True):
            finish(*ready, a, b)

    cos, sin = (None, None) if rope is None else rope
    q, k, v = launch(
        kernel,
        name="qkv",
        grid=(grid,),
        inputs=dict(
            x=x,
            norm=norm,
            w=weight.rows,
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
            prefetch=flat_rows(prefetch),
        ),
        outputs=[
            jax.ShapeDtypeStruct((x.shape[0], heads, head_dim), x.dtype),
            jax.ShapeDtypeStruct(cache.k.shape, cache.k.dtype),
            jax.ShapeDtypeStruct(cache.v.shape, cache.v.dtype),
        ],
        aliases=dict(k=1, v=2),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=options.interpret,
    )
    return q, KVCache(k=k, v=v)
