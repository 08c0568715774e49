"""The Triton kernel of rope_and_cache: a program has one head of a few rows, or, where there are many, some heads."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.common.calls import MAX_ROWS
from pallas_kernels.common.kv_cache import KVCache
from pallas_kernels.common.launch import launch, launch_dependents
from pallas_kernels.rope_and_cache.heads import KINDS, Heads
from pallas_kernels.rope_and_cache.sums import Sums

BLOCK_M = 16
"""Rows of a program, where there are no more than a decode step's launch takes."""
HEADS_OF_MANY_ROWS, PAIRS_OF_THREAD = 4, 8
"""Where there are more rows: the heads of a program at most, all queries, all keys or all values, which share the rows'
places and angles, and the pairs of each that a thread has: in 16 bits their halves are stores of 16 bytes."""
WARPS = 4


def rope_and_cache(options, *, pairs, cache, positions, sequence, page_table, rope, q_norm, k_norm):
    """As `api.rope_and_cache`, with every optional array present or None."""
    heads = Heads.of(
        cache, page_table, rope, heads=options.num_heads, rotary_dim=options.rotary_dim, eps=options.eps,
        norm_offset=options.norm_offset, interpret=options.interpret,
    )  # fmt: skip
    q, cache, k, v = store(
        heads, pairs[None], False, by_row=True, cache=cache, positions=positions, sequence=sequence,
        page_table=page_table, rope=rope, q_norm=q_norm, k_norm=k_norm, bias=None, dtype=options.dtype,
    )  # fmt: skip
    return q, k, v, cache


def store(
    heads: Heads,
    parts: jax.Array,
    planes: bool,
    *,
    by_row: bool = False,
    cache: KVCache,
    positions: jax.Array,
    rope: tuple[jax.Array, jax.Array] | None,
    dtype: Any,
    **operands: jax.Array | None,
) -> tuple:
    """Adds partial sums of pairs up, and stores what they make.

    Args:
        parts: [splits, M, O, 2], any float dtype; with `planes` [splits, 2, M, O].
        by_row: whether keys and values are returned by row as well.
        positions: int32 [M]. dtype: of q. operands: sequence, page_table, q_norm, k_norm and bias, or None.

    Returns:
        (q [M, N, H], the cache), and k and v [M, K, H] of the cache's dtype if asked for.
    """
    rows, block = positions.shape[0], max(16, pl.next_power_of_2(heads.half))
    many = rows > MAX_ROWS
    block_m = max(1, PAIRS_OF_THREAD * 32 * WARPS // block) if many else BLOCK_M
    each = math.gcd(HEADS_OF_MANY_ROWS, heads.kv_heads) if many else 1  # query heads are a multiple of kv heads
    sums = Sums.of(parts, planes, words=many)

    def rows_of(program):
        row = program * block_m + jnp.arange(block_m, dtype=jnp.int32)
        return row, row < rows

    def one_head(program, refs, out_refs):
        pairs = heads.pairs_of_head(program[0], block)
        row, valid = rows_of(program[1])
        mask = valid[:, None] & pairs.inside[None, :]
        prepared = heads.prepare(refs, pairs, row, valid)
        heads.finish(refs, out_refs, prepared, sums.load(refs.parts, pairs, row, mask))

    def some_heads(kind, program, refs, out_refs):
        first, (row, valid) = each * program[0], rows_of(program[1])
        of_heads = [heads.pairs_of_head(first + i, block, kind) for i in range(each)]
        # All before the first store: loads do not move up past one.
        loaded = [sums.load(refs.parts, pairs, row, valid[:, None] & pairs.inside[None, :]) for pairs in of_heads]
        prepared = [heads.prepare(refs, of_heads[0], row, valid)]
        prepared += [heads.prepare(refs, pairs, row, valid, prepared[0]) for pairs in of_heads[1:]]
        for one, values in zip(prepared, loaded, strict=True):
            heads.finish(refs, out_refs, one, values)

    def kernel(refs, *out_refs):
        launch_dependents(heads.interpret)
        program = pl.program_id(0), pl.program_id(1)
        if not many:
            return one_head(program, refs, out_refs)
        end = 0
        for kind, count in zip(KINDS, (heads.heads, heads.kv_heads, heads.kv_heads), strict=True):
            begin, end = end, end + count // each
            own = (program[0] >= begin) & (program[0] < end)
            pl.when(own)(functools.partial(some_heads, kind, program, refs, out_refs))

    cos, sin = (None, None) if rope is None else rope
    caches = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (cache.k, cache.v)]
    by_row_of = [jax.ShapeDtypeStruct((rows, heads.kv_heads, heads.head_dim), x.dtype) for x in caches]
    q, k, v, *of_rows = launch(
        kernel,
        name="rope_and_cache",
        grid=(heads.count // each, pl.cdiv(rows, block_m)),
        inputs=dict(parts=sums.operand(parts), cos=cos, sin=sin, positions=positions, **arrays_of(cache)) | operands,
        outputs=[
            jax.ShapeDtypeStruct((rows, heads.heads, heads.head_dim), dtype),
            *caches,
            *(by_row_of if by_row else []),
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
