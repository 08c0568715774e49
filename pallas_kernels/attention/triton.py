"""The Triton kernel of attention: programs share the keys of one (row, kv head); the last to finish combines.

Each program runs the online softmax over its share (Milakov and Gimelshein 2018; split over keys as in Flash-Decoding,
Dao et al. 2023) and leaves float32 partials: the maximum, the sum and the weighted values. A counter per (row, kv
head) tells the last program; it reads the partials back from L2, combines them and sets the counter to zero again.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.attention.tiles import combined_at_once
from pallas_kernels.common.blocks import Span, load, store, view
from pallas_kernels.common.launch import launch, let_next_start
from pallas_kernels.common.prefetch import flat_rows
from pallas_kernels.common.prefetch import prefetch as ask_for

LOG2_E = 1.4426950408889634
LOWEST = -1e30


def attention(options, *, q, cache, lengths, sequence, page_table, counters, prefetch):
    """As `api.attention`, with every optional array present or None."""
    shape, tiles, interpret = options.shape, options.tiles, options.interpret
    group, group_rows = shape.heads // shape.kv_heads, shape.group_rows
    kept_rows = shape.kept_rows
    head_dim, padded_dim, page_size = shape.head_dim, shape.padded_head_dim, shape.page_size
    block_s, splits, window = tiles.block_s, tiles.splits, options.window
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    group_limit = None if group == group_rows else group
    dim_limit = None if head_dim == padded_dim else head_dim
    block_in_page = page_size % block_s == 0
    pages = 1 if page_table is None else page_table.shape[1]
    last_block = pl.cdiv(shape.context, block_s) - 1
    one_block_each = splits > last_block

    def load_blocks(refs, owner, kv_head, j, inside):
        """Keys and values of block j, [block_s, padded_dim] each; what is not inside reads as zero.

        Without `inside` (bool [block_s]), only what is past the capacity or the head does.
        """
        slots = j * block_s + jnp.arange(block_s, dtype=jnp.int32)
        within = slots < shape.context
        full, dims = (block_s, padded_dim), jnp.arange(padded_dim, dtype=jnp.int32)
        if page_table is None:
            page = owner
        elif block_in_page:  # the last block may be past the table when the capacity ends in it
            page = refs.page_table[owner, jnp.minimum(j * block_s // page_size, pages - 1)]
            page = jnp.clip(page, 0, cache.k.shape[0] - 1)
        else:
            at = jnp.full((block_s,), owner), jnp.minimum(slots // page_size, pages - 1)
            page = jnp.clip(plt.load(refs.page_table.at[at]), 0, cache.k.shape[0] - 1)[:, None]
        mask = None
        if inside is not None or dim_limit is not None or shape.context % block_s:
            counted = within if inside is None else inside
            mask = jnp.broadcast_to(counted[:, None] & (dims < head_dim)[None, :], full)
        if block_in_page and not interpret:
            index = page, kv_head, pl.ds(j * block_s % page_size, block_s), pl.ds(0, padded_dim)
        else:
            parts = page, kv_head, (slots % page_size)[:, None], dims[None, :]
            index = tuple(jnp.broadcast_to(part, full) for part in parts)
        other = None if mask is None else 0.0
        return [plt.load(ref.at[index], mask=mask, other=other) for ref in (refs.k, refs.v)]

    def kernel(refs, out_ref, *scratch):
        let_next_start(interpret)
        split, kv_head, row = pl.program_id(0), pl.program_id(1), pl.program_id(2)
        owner = row if sequence is None else refs.sequence[row]
        heads, dims = Span(0, group_rows, group_limit), Span(0, padded_dim, dim_limit)

        def counts(j):
            position = j * block_s + jnp.arange(block_s, dtype=jnp.int32)
            return (position < length) & (position >= oldest)

        def step(k, v, inside, carry):
            peak, total, values = carry
            scores = plt.dot(query, k, trans_b=True, precision=precision) * options.scale
            if options.soft_cap is not None:
                scores = options.soft_cap * jnp.tanh(scores / options.soft_cap)
            scores = jnp.where(inside[None, :], scores * LOG2_E, LOWEST)
            new_peak = jnp.maximum(peak, jnp.max(scores, axis=1))
            weights = jnp.where(inside[None, :], jnp.exp2(scores - new_peak[:, None]), 0.0)
            decay = jnp.exp2(peak - new_peak)
            total = total * decay + jnp.sum(weights, axis=1)
            values = values * decay[:, None] + plt.dot(weights.astype(v.dtype), v, precision=precision)
            return new_peak, total, values

        # Where a block for each split covers the cache, which block is a split's depends on no length: its keys and
        # values are under way before the length has come. Else the splits share what the length leaves them.
        only = load_blocks(refs, owner, kv_head, jnp.minimum(split, last_block), None) if one_block_each else None
        query = load(refs.q, row, kv_head, heads, dims, interpret=interpret)
        length = jnp.minimum(refs.lengths[row], shape.context)
        oldest = jnp.int32(0) if window is None else jnp.maximum(length - window, 0)

        peak = jnp.full((group_rows,), LOWEST, jnp.float32)
        total = jnp.zeros((group_rows,), jnp.float32)
        values = jnp.zeros((group_rows, padded_dim), jnp.float32)
        if only is not None:
            k, v = only
            # Outside may be anything, NaN too: scores are replaced, and values, since 0 * NaN is NaN.
            v = jnp.where(counts(split)[:, None], v, jnp.zeros_like(v))
            peak, total, values = step(k, v, counts(split), (peak, total, values))
        else:
            first = oldest // block_s
            blocks = pl.cdiv(length, block_s) - first
            share = pl.cdiv(blocks, splits)
            begin = first + split * share
            end = jnp.minimum(begin + share, first + blocks)

            def next_block(j, carry):
                inside = counts(j)
                k, v = load_blocks(refs, owner, kv_head, j, inside)
                return step(k, v, inside, carry)

            peak, total, values = lax.fori_loop(begin, end, next_block, (peak, total, values))
        if refs.prefetch is not None and not interpret:
            ask_for(
                refs.prefetch, (row * shape.kv_heads + kv_head) * splits + split, threads=32 * tiles.num_warps,
                programs=shape.rows * shape.kv_heads * splits, limit_bytes=options.prefetch_bytes,
            )  # fmt: skip

        def finish(heads, total, values):
            # A row of length 0 attends to nothing and gets zeros.
            out = values / jnp.where(total == 0.0, 1.0, total)[:, None]
            store(out_ref, row, kv_head, heads, dims, value=out, interpret=interpret)

        if splits == 1:
            finish(heads, total, values)
            return
        counters_ref, stats_ref, partial_ref = scratch
        kept, every_dim = Span(0, group_rows, kept_rows), Span(0, padded_dim)
        store(stats_ref, row, kv_head, split, 0, kept, value=peak, interpret=interpret)
        store(stats_ref, row, kv_head, split, 1, kept, value=total, interpret=interpret)
        store(partial_ref, row, kv_head, split, kept, every_dim, value=values, interpret=interpret)
        if not interpret:
            plt.debug_barrier()  # every thread's partials are written before one thread counts
        arrived = plt.atomic_add(counters_ref, (row, kv_head), jnp.int32(1))

        @pl.when(arrived == splits - 1)
        def _():
            at_once = combined_at_once(tiles, shape)

            def read(ref, start, *index):
                at, _ = view(ref, row, kv_head, Span(start, at_once), *index, interpret=interpret)
                return plt.load(at, volatile=not interpret)

            all_heads, all_dims = Span(0, kept_rows), Span(0, padded_dim)

            def combine(j, carry):
                peak, total, values = carry
                start = j * at_once
                peaks = read(stats_ref, start, 0, all_heads)
                new_peak = jnp.maximum(peak, jnp.max(peaks, axis=0))
                weights = jnp.exp2(peaks - new_peak[None, :])
                decay = jnp.exp2(peak - new_peak)
                total = total * decay + jnp.sum(weights * read(stats_ref, start, 1, all_heads), axis=0)
                parts = read(partial_ref, start, all_heads, all_dims)
                values = values * decay[:, None] + jnp.sum(weights[:, :, None] * parts, axis=0)
                return new_peak, total, values

            zeros = jnp.zeros((kept_rows,), jnp.float32), jnp.zeros((kept_rows, padded_dim), jnp.float32)
            carry = (jnp.full((kept_rows,), LOWEST, jnp.float32), *zeros)
            _, total_all, values_all = lax.fori_loop(0, splits // at_once, combine, carry)
            kept_heads = Span(0, kept_rows, None if group == kept_rows else group)
            finish(kept_heads, total_all, values_all)
            counters_ref[row, kv_head] = jnp.int32(0)

    grouped = shape.rows, shape.kv_heads, group, head_dim
    inputs = dict(
        q=q.reshape(grouped), k=cache.k, v=cache.v, lengths=lengths, sequence=sequence, page_table=page_table,
        prefetch=flat_rows(prefetch),
    )  # fmt: skip
    outputs = [jax.ShapeDtypeStruct(grouped, q.dtype)]
    if splits > 1:
        per_head = shape.rows, shape.kv_heads
        inputs["counters"] = jnp.zeros(per_head, jnp.int32) if counters is None else counters
        outputs += [
            jax.ShapeDtypeStruct(per_head, jnp.int32),
            jax.ShapeDtypeStruct((*per_head, splits, 2, kept_rows), jnp.float32),
            jax.ShapeDtypeStruct((*per_head, splits, kept_rows, padded_dim), jnp.float32),
        ]
    results = launch(
        kernel,
        name="attention",
        grid=(splits, shape.kv_heads, shape.rows),
        inputs=inputs,
        outputs=outputs,
        aliases=dict(counters=1) if splits > 1 else {},
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=interpret,
    )
    if counters is not None and splits > 1:
        counters = results[1]
    return results[0].reshape(q.shape), counters
