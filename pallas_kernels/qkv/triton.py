"""The Triton kernel of qkv: each block is of whole rotation pairs, so its program rotates and stores what it sums.

With splits it stores partial sums alone, and the launch of `rope_and_cache` does the rest.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.common import fixed_point
from pallas_kernels.common.blocks import scatter
from pallas_kernels.common.launch import launch
from pallas_kernels.common.prefetch import flat_values
from pallas_kernels.common.prenorm import Norm, prenorm
from pallas_kernels.common.stream import Stream, programs_of
from pallas_kernels.common.weight_block import streamed, weight_refs
from pallas_kernels.rope_and_cache.heads import Heads
from pallas_kernels.rope_and_cache.triton import arrays_of, store


def qkv(options, *, x, norm, weight, cache, positions, sequence, page_table, rope, q_norm, k_norm, prefetch):
    """As `api.qkv`, with every optional array present or None."""
    shape, tiles = options.shape, options.tiles
    fused = Norm(eps=options.eps, offset=options.norm_offset)
    activations = prenorm(fused, x, norm, tiles, shape, interpret=options.interpret)
    heads = Heads.of(
        cache, page_table, rope, heads=options.num_heads, rotary_dim=weight.rotary_dim, eps=options.eps,
        norm_offset=options.norm_offset, interpret=options.interpret,
    )  # fmt: skip
    # The sum of QK-norm spans a head, so a block is a head; with splits it is formed later.
    block_stride = heads.half if q_norm is not None and tiles.splits == 1 else None
    stored: dict[str, Any] = dict(
        positions=positions, sequence=sequence, page_table=page_table, q_norm=q_norm, k_norm=k_norm
    )

    def stream_of(refs):
        return Stream(
            x_ref=fixed_point.refs_of(refs), norm_ref=refs.norm, weight=weight_refs(refs), shape=shape, tiles=tiles,
            norm=activations.norm,
            block_stride=block_stride, interpret=options.interpret, squares_ref=refs.squares,
            prefetch_ref=refs.prefetch, prefetch_bytes=options.prefetch_bytes,
        )  # fmt: skip

    def whole(refs, *out_refs):  # the cache is written through its output refs
        stream = stream_of(refs)

        def before(block):
            """What the finish of each group of rows needs."""
            pairs = heads.pairs_from(block.first, block.limit, tiles.block_n)
            return [heads.prepare(refs, pairs, rows, valid) for rows, valid in stream.row_groups()]

        stream.run(lambda _, prepared, sums: heads.finish(refs, out_refs, prepared, sums), before)

    def partial(refs, parts_ref):
        stream = stream_of(refs)

        def finish(block, group, sums):
            rows, valid = group
            pairs = heads.pairs_from(block.first, block.limit, tiles.block_n)
            mask = valid[:, None] & pairs.inside[None, :]
            for c, value in enumerate(sums):
                index = stream.split(), c, rows[:, None], pairs.index[None, :]
                scatter(parts_ref, *index, value=value, mask=mask, interpret=options.interpret)

        stream.run(finish)

    inputs = activations.inputs() | streamed(weight) | dict(prefetch=flat_values(prefetch))
    how: dict[str, Any] = dict(
        name="qkv", num_warps=tiles.num_warps, num_stages=tiles.num_stages, interpret=options.interpret
    )
    programs = programs_of(shape, tiles, block_stride)
    if tiles.splits > 1:
        sums = jax.ShapeDtypeStruct((tiles.splits, 2, shape.rows, shape.outputs), jnp.float32)
        (parts,) = launch(partial, grid=(programs, tiles.splits), inputs=inputs, outputs=[sums], **how)
        return store(heads, parts, True, cache=cache, rope=rope, bias=weight.bias, dtype=shape.dtype, **stored)
    cos, sin = (None, None) if rope is None else rope
    q, k, v = launch(
        whole,
        grid=(programs,),
        inputs=inputs | stored | dict(bias=weight.bias, cos=cos, sin=sin) | arrays_of(cache),
        outputs=[
            jax.ShapeDtypeStruct((shape.rows, heads.heads, heads.head_dim), shape.dtype),
            jax.ShapeDtypeStruct(cache.k.shape, cache.k.dtype),
            jax.ShapeDtypeStruct(cache.v.shape, cache.v.dtype),
        ],
        aliases=dict(k=1, v=2),
        **how,
    )
    return q, dataclasses.replace(cache, k=k, v=v)
