"""The Triton kernel of attention: programs share the keys of one (row, kv head); the last to finish combines.

Each program runs the online softmax over its share (Milakov and Gimelshein 2018; split over keys as in Flash-Decoding,
Dao et al. 2023) and leaves float32 partials: the maximum, the sum and the weighted values. A counter per (row, kv
head) tells the last program; it reads the partials back from L2, combines them and sets the counter to zero again.

With several tokens a sequence, a block of them stands in place of a row: the rows of its products are the heads of all
its tokens (`TokenRows`), each with a length of its own, and the keys are read once for all. A block of one token is a
row, and compiles to the same whether its sequence has others or not.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.attention.tiles import SUM_COLUMNS, combined_at_once
from pallas_kernels.attention.token_rows import TokenRows
from pallas_kernels.common import fixed_point
from pallas_kernels.common.blocks import Span, gather, load, load_masked, store
from pallas_kernels.common.eight_bits import format_of
from pallas_kernels.common.launch import launch, launch_dependents
from pallas_kernels.common.prefetch import flat_values
from pallas_kernels.common.prefetch import prefetch as ask_for
from pallas_kernels.common.unpack import unpack

FAULT = np.float32(np.nan)
"""Not Python's nan: the backend gives a bare number that a condition selects the condition's type."""
LOG2_E = 1.4426950408889634
LOWEST = -1e30
"""Where a maximum starts: finite, so that what is masked with -inf weighs exp2(-inf - LOWEST) = 0 even alone."""


def attention(options, *, q, cache, lengths, sequence, page_table, counters, prefetch):
    """As `api.attention`, with every optional array present or None."""
    shape, tiles, interpret = options.shape, options.tiles, options.interpret
    block_t, blocks_t = tiles.block_t, pl.cdiv(shape.tokens, tiles.block_t)
    group, group_rows = shape.heads // shape.kv_heads, shape.group_rows(block_t)
    kept_rows = shape.kept_rows(block_t)
    head_dim, padded_dim, page_size = shape.head_dim, shape.padded_head_dim, shape.page_size
    block_s, splits, window = tiles.block_s, tiles.splits, options.window
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    units = shape.rows * blocks_t  # what has a program of its own for each split and kv head
    group_limit = None if group == group_rows else group
    dim_limit = None if head_dim == padded_dim else head_dim
    block_in_page = page_size % block_s == 0
    sequences, pages = (cache.k.shape[0], 1) if page_table is None else page_table.shape
    last_block = pl.cdiv(shape.context, block_s) - 1
    one_block_each = splits > last_block

    def slots_of(j):
        return j * block_s + jnp.arange(block_s, dtype=jnp.int32)

    def page_of(refs, owner, j):
        """The page of block j, or those of its keys [block_s] where a block spans pages; whatever the table holds."""
        if page_table is None:
            return owner
        # The last block may be past the table, when the capacity ends in it.
        if block_in_page:
            return refs.page_table[owner, jnp.minimum(j * block_s // page_size, pages - 1)]
        at = jnp.full((block_s,), owner), jnp.minimum(slots_of(j) // page_size, pages - 1)
        return plt.load(refs.page_table.at[at])

    def inside_cache(page):
        return page if page_table is None else jnp.clip(page, 0, cache.k.shape[0] - 1)

    def load_block(ref, page, kv_head, j, inside=None):
        """Block j of keys or values, [block_s, padded_dim]; what is outside the capacity or the head reads as zero.

        So does, with `inside` (bool [block_s]), what is not inside.
        """
        slots, page = slots_of(j), inside_cache(page)
        full, dims = (block_s, padded_dim), jnp.arange(padded_dim, dtype=jnp.int32)
        mask = None
        if inside is not None or dim_limit is not None or shape.context % block_s:
            counted = slots < shape.context if inside is None else inside
            mask = jnp.broadcast_to(counted[:, None] & (dims < head_dim)[None, :], full)
        if block_in_page and not interpret:
            index = page, kv_head, pl.ds(j * block_s % page_size, block_s), Span(0, padded_dim, dim_limit).slice()
        else:
            page = page if block_in_page or page_table is None else page[:, None]
            parts = page, kv_head, (slots % page_size)[:, None], dims[None, :]
            index = tuple(jnp.broadcast_to(part, full) for part in parts)
        return load_masked(ref.at[index], mask)

    def floats(block):
        """Keys or values as products take them, without their scale."""
        name = format_of(block.dtype)
        return block if name is None else unpack(block, name, 0, str(q.dtype), interpret=interpret)

    bits = options.fixed_point
    grouped = *((units,) if block_t == 1 else (shape.rows, shape.tokens)), shape.kv_heads, group, head_dim
    outputs = [jax.ShapeDtypeStruct(grouped, q.dtype)]
    if bits is not None:
        outputs = fixed_point.outputs(units, shape.heads * head_dim, bits)
    made = len(outputs)

    def kernel(refs, *out_refs):
        out_refs, scratch = out_refs[:made], out_refs[made:]
        launch_dependents(interpret)
        split, kv_head, row = pl.program_id(0), pl.program_id(1), pl.program_id(2)
        at = row if blocks_t == 1 else row // blocks_t  # of the arrays that have a row for each sequence
        owner = at if sequence is None else jnp.clip(refs.sequence[at], 0, sequences - 1)
        heads, dims = Span(0, group_rows, group_limit), Span(0, padded_dim, dim_limit)
        tokens = None
        if block_t > 1:
            tokens = TokenRows(
                shape=shape, block_t=block_t, row=at, block=row % blocks_t, kv_head=kv_head, interpret=interpret
            )

        def counts(j, page):
            """Which keys of block j count, bool [block_s], or [group_rows, block_s] of several tokens; which are read.

            What is read, bool [block_s], has its value taken as it is: what any query row attends to, but no missing
            page, for the sake of the rows that do not attend to it.
            """
            position = slots_of(j)
            if tokens is None:
                inside = (position < length) & (position >= oldest)
                return inside, inside
            inside = position[None, :] < length[:, None]
            read = position < longest
            if window is not None:  # windows may leave a gap
                inside &= position[None, :] >= oldest[:, None]
                read = jnp.max(inside.astype(jnp.int32), axis=0) > 0
            return inside, read if page_table is None else read & (page == inside_cache(page))

        def step(query, k, v, page, inside, carry):
            peak, total, values = carry
            k, v = floats(k), floats(v)
            scores = plt.dot(query, k, trans_b=True, precision=precision)
            scale: Any = options.scale * LOG2_E if options.soft_cap is None else options.scale / options.soft_cap
            if k_scale is not None:
                scale = np.float32(scale) * k_scale
            if page_table is not None:  # keys without a page are NaN: in place of the scale that takes no time
                scale = jnp.where(page == inside_cache(page), jnp.float32(scale), FAULT)
            scores = scores * scale
            if options.soft_cap is not None:
                scores = options.soft_cap * LOG2_E * jnp.tanh(scores)
            scores = jnp.where(inside if inside.ndim == 2 else inside[None, :], scores, -jnp.inf)
            new_peak = jnp.maximum(peak, jnp.max(scores, axis=1))
            weights = jnp.exp2(scores - new_peak[:, None]).astype(v.dtype)
            decay = jnp.exp2(peak - new_peak)[:, None]
            # A product with ones sums the weights without the barriers that a sum over warps takes.
            ones = jnp.ones((block_s, SUM_COLUMNS), v.dtype)
            total = total * decay + plt.dot(weights, ones, precision=precision)
            values = values * decay + plt.dot(weights, v, precision=precision)
            return new_peak, total, values

        # The order of the loads matters. The backend moves queries and keys into shared memory as soon as they are
        # loaded, and what stands behind that waits for them: so they come last, and the queries pass through a select
        # (on the length, which is asked for before them) so that their move comes after the keys' loads.
        #
        # Where a block for each split covers the cache, which block is a split's depends on no length: its keys and
        # values are under way before the length has come. Else the splits share what the length leaves them.
        only = jnp.minimum(split, last_block)
        page: Any = page_of(refs, owner, only) if one_block_each else None
        v: Any = load_block(refs.v, page, kv_head, only) if one_block_each else None
        k_scale, v_scale = (None if ref is None else ref[kv_head] for ref in (refs.k_scale, refs.v_scale))
        asked = refs.lengths[row] if tokens is None else tokens.lengths(refs.lengths, group_rows)
        length = jnp.minimum(asked, shape.context)
        oldest = jnp.int32(0) if window is None else jnp.maximum(length - window, 0)
        if tokens is None:
            query = load(refs.q, row, kv_head, heads, dims, interpret=interpret)
        else:
            query = tokens.load(refs.q, group_rows)
        k: Any = load_block(refs.k, page, kv_head, only) if one_block_each else None
        # What would be an error, were it known outside the kernel, is NaN.
        fault = asked > shape.context
        if sequence is not None:
            fault |= owner != refs.sequence[at]
        if tokens is None:
            query = jnp.where(
                (length > 0) & ~fault, query, jnp.where(fault, FAULT, np.float32(0.0)).astype(query.dtype)
            )
            longest, earliest = length, oldest
        else:
            # A token's fault is none of the others': it reads no key, and its sum becomes NaN.
            fault &= asked > 0
            length = jnp.where(fault, 0, length)
            query = jnp.where((length > 0)[:, None], query, jnp.zeros_like(query))
            longest = jnp.max(length)
            earliest = jnp.min(jnp.where(length > 0, oldest, longest))
        if refs.prefetch is not None and not interpret:
            programs = units * shape.kv_heads * splits
            program = (row * shape.kv_heads + kv_head) * splits + split
            ask_for(refs.prefetch, program, programs=programs, limit_bytes=options.prefetch_bytes)

        carry = (
            jnp.full((group_rows,), LOWEST, jnp.float32),
            jnp.zeros((group_rows, SUM_COLUMNS), jnp.float32),
            jnp.zeros((group_rows, padded_dim), jnp.float32),
        )
        # What is not attended to may be anything, NaN too: scores are replaced, and values are, since 0 * NaN is NaN.
        if one_block_each:
            inside, read = counts(split, page)
            if v.dtype != jnp.int8:  # which has no NaN
                v = jnp.where(read[:, None], v, jnp.zeros_like(v))
            carry = step(query, k, v, page, inside, carry)
        else:
            first, stop = earliest // block_s, pl.cdiv(longest, block_s)
            share = pl.cdiv(stop - first, splits)
            begin = first + split * share
            end = jnp.minimum(begin + share, stop)

            def next_block(j, carry):
                page, carry = carry
                inside, read = counts(j, page)
                keys = load_block(refs.k, page, kv_head, j)
                values = load_block(refs.v, page, kv_head, j, read)
                # The page of the block after this one is looked up a block ahead, or each block would wait for it.
                return page_of(refs, owner, j + 1), step(query, keys, values, page, inside, carry)

            _, carry = lax.fori_loop(begin, end, next_block, (page_of(refs, owner, begin), carry))
        peak, total, values = carry
        total = jnp.max(total, axis=1)  # every column is the sum
        if tokens is not None:
            total = jnp.where(fault, FAULT, total)

        def finish(heads, total, values):
            # A row of length 0 attends to nothing and gets zeros.
            out = values / jnp.where(total == 0.0, 1.0, total)
            if v_scale is not None:
                out = out * v_scale
            if bits is not None:
                first = kv_head * group * head_dim
                fixed_point.save(out_refs, row, first, out, first + group * head_dim, interpret=interpret)
            elif tokens is None:
                store(out_refs[0], row, kv_head, heads, dims, value=out, interpret=interpret)
            else:
                tokens.store(out_refs[0], out)

        if splits == 1:
            finish(heads, total[:, None], values)
            return
        counters_ref, stats_ref, partial_ref = scratch
        kept, every_dim = Span(0, group_rows, kept_rows), Span(0, padded_dim)
        store(stats_ref, row, kv_head, split, 0, kept, value=peak, interpret=interpret)
        store(stats_ref, row, kv_head, split, 1, kept, value=total, interpret=interpret)
        store(partial_ref, row, kv_head, split, kept, every_dim, value=values, interpret=interpret)
        if not interpret:
            plt.debug_barrier()  # every thread's partials are written before one thread counts
        # It releases this program's partials and, for the last program, acquires the others'.
        arrived = plt.atomic_add(counters_ref, (row, kv_head), jnp.int32(1))

        @pl.when(arrived == splits - 1)
        def _():
            # A thread combines its own elements over all splits, so that no thread waits for another.
            at_once = combined_at_once(tiles, shape)
            head = jnp.arange(kept_rows, dtype=jnp.int32)[:, None]

            def combine(j, carry):
                peak, total, values = carry
                mine = [j * at_once + i for i in range(at_once)]
                parts = [
                    load(partial_ref, row, kv_head, i, Span(0, kept_rows), every_dim, interpret=interpret) for i in mine
                ]
                peaks = [gather(stats_ref, row, kv_head, i, 0, head, mask=head < kept_rows) for i in mine]
                totals = [gather(stats_ref, row, kv_head, i, 1, head, mask=head < kept_rows) for i in mine]
                new_peak = functools.reduce(jnp.maximum, peaks, peak)
                decay = jnp.exp2(peak - new_peak)
                total, values = total * decay, values * decay
                for part, top, its_total in zip(parts, peaks, totals, strict=True):
                    weight = jnp.exp2(top - new_peak)
                    total, values = total + weight * its_total, values + weight * part
                return new_peak, total, values

            zeros = jnp.zeros((kept_rows, 1), jnp.float32), jnp.zeros((kept_rows, padded_dim), jnp.float32)
            carry = jnp.full((kept_rows, 1), LOWEST, jnp.float32), *zeros
            if at_once == splits:
                carry = combine(0, carry)
            else:
                carry = lax.fori_loop(0, splits // at_once, combine, carry)
            finish(Span(0, kept_rows, None if group == kept_rows else group), *carry[1:])
            counters_ref[row, kv_head] = jnp.int32(0)

    by_token = (units,) if block_t == 1 else (shape.rows, shape.tokens)
    inputs = dict(
        q=q.reshape(grouped), k=cache.k, v=cache.v, k_scale=cache.k_scale, v_scale=cache.v_scale,
        lengths=lengths.reshape(by_token), sequence=sequence, page_table=page_table, prefetch=flat_values(prefetch),
    )  # fmt: skip
    if splits > 1:
        per_head = units, shape.kv_heads
        inputs["counters"] = jnp.zeros(per_head, jnp.int32) if counters is None else counters
        outputs += [
            jax.ShapeDtypeStruct(inputs["counters"].shape, jnp.int32),
            jax.ShapeDtypeStruct((*per_head, splits, 2, kept_rows), jnp.float32),
            jax.ShapeDtypeStruct((*per_head, splits, kept_rows, padded_dim), jnp.float32),
        ]
    results = launch(
        kernel,
        name="attention",
        grid=(splits, shape.kv_heads, units),
        inputs=inputs,
        outputs=outputs,
        aliases=dict(counters=made) if splits > 1 else {},
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=interpret,
    )
    if counters is not None and splits > 1:
        counters = results[made]
    if bits is not None:
        return fixed_point.made_of(results[:made], q.dtype), counters
    return results[0].reshape(q.shape), counters
