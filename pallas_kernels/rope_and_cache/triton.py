"""The Triton kernel of rope_and_cache: a program has one head of a few rows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.common.blocks import gather
from pallas_kernels.common.kv_cache import KVCache
from pallas_kernels.common.launch import launch, launch_dependents
from pallas_kernels.rope_and_cache.heads import Heads

FEW_ROWS, MANY_ROWS, WARPS = 16, 32, 4
"""Rows of a program, where there are as few as a decode step's and where there are more."""


def rope_and_cache(options, *, pairs, cache, positions, sequence, page_table, rope, q_norm, k_norm):
    """As `api.rope_and_cache`, with every optional array present or None."""
    heads = Heads.of(
        cache, page_table, rope, heads=options.num_heads, rotary_dim=options.rotary_dim, eps=options.eps,
        norm_offset=options.norm_offset, interpret=options.interpret,
    )  # fmt: skip
    q, cache, k, v = store(
        heads, pairs[None], False, by_row=True, first_row=options.first_row, cache=cache, positions=positions,
        sequence=sequence, page_table=page_table, rope=rope, q_norm=q_norm, k_norm=k_norm, bias=None,
        dtype=options.dtype,
    )  # fmt: skip
    return q, k, v, cache


def store(
    heads: Heads,
    parts: jax.Array,
    planes: bool,
    *,
    by_row: bool = False,
    first_row: int = 0,
    cache: KVCache,
    positions: jax.Array,
    rope: tuple[jax.Array, jax.Array] | None,
    dtype: Any,
    **operands: jax.Array | None,
) -> tuple:
    """Adds partial sums of pairs up, and stores what they make.

    Args:
        parts: [splits, M or more, O, 2], any float dtype; with `planes` [splits, 2, M or more, O].
        by_row: whether keys and values are returned by row as well. first_row: of `parts`, that is the first of M.
        positions: int32 [M]. dtype: of q. operands: sequence, page_table, q_norm, k_norm and bias, or None.

    Returns:
        (q [M, N, H], the cache), and k and v [M, K, H] of the cache's dtype if asked for.
    """
    splits, rows = parts.shape[0], positions.shape[0]
    block = max(16, pl.next_power_of_2(heads.half))
    block_m = FEW_ROWS if rows <= 256 else MANY_ROWS

    def kernel(refs, *out_refs):
        launch_dependents(heads.interpret)
        pairs = heads.pairs_of_head(pl.program_id(0), block)
        row = pl.program_id(1) * block_m + jnp.arange(block_m, dtype=jnp.int32)
        valid = row < rows
        mask = valid[:, None] & pairs.inside[None, :]
        prepared = heads.prepare(refs, pairs, row, valid)

        def part(split, c):
            index, place = pairs.index[None, :], first_row + row[:, None]
            where = (split, c, place, index) if planes else (split, place, index, c)
            return gather(refs.parts, *where, mask=mask)

        a, b = (sum((part(split, c) for split in range(1, splits)), start=part(0, c)) for c in (0, 1))
        heads.finish(refs, out_refs, prepared, (a, b))

    cos, sin = (None, None) if rope is None else rope
    caches = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (cache.k, cache.v)]
    rows_of = [jax.ShapeDtypeStruct((rows, heads.kv_heads, heads.head_dim), x.dtype) for x in caches]
    q, k, v, *of_rows = launch(
        kernel,
        name="rope_and_cache",
        grid=(heads.count, pl.cdiv(rows, block_m)),
        inputs=dict(parts=parts, cos=cos, sin=sin, positions=positions, **arrays_of(cache)) | operands,
        outputs=[
            jax.ShapeDtypeStruct((rows, heads.heads, heads.head_dim), dtype),
            *caches,
            *(rows_of if by_row else []),
        ],
        aliases=dict(k=1, v=2),
        num_warps=WARPS,
        num_stages=1,
        interpret=heads.interpret,
    )
    return q, dataclasses.replace(cache, k=k, v=v), *of_rows


def arrays_of(cache: KVCache) -> dict[str, jax.Array | None]:
    """Of a launch's inputs those of a cache that it writes, by name."""
    return dict(k=cache.k, v=cache.v, k_scale=cache.k_scale, v_scale=cache.v_scale)
