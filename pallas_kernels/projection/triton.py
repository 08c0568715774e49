"""The Triton kernel of out and down: stream the weight, add bias and residual, store, with the next norm deferred.

With splits it stores partial sums alone, and `combine` does the rest.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.common import fixed_point
from pallas_kernels.common.blocks import gather, scatter
from pallas_kernels.common.deferred_norm import DeferredNorm
from pallas_kernels.common.launch import launch
from pallas_kernels.common.prefetch import flat_values
from pallas_kernels.common.prenorm import as_multiplied
from pallas_kernels.common.stream import Stream, blocks_of, programs_of
from pallas_kernels.common.weight_block import streamed, weight_refs
from pallas_kernels.projection.combine import combine


def projection(options, *, x, weight, residual, norm, prefetch):
    """As `api.out`, with x [B, I] and every optional array present or None."""
    shape, tiles = options.shape, options.tiles
    x = as_multiplied(x, tiles, shape)
    # With tensor cores the next kernel's programs must not be let in early: a step with deferred norms then took 18%
    # longer, presumably as they settle unevenly, where there is room.
    early = not tiles.mma
    dtypes = [options.out_dtype] if norm is None else [x.dtype, jnp.float32]
    bits = None if norm is None else fixed_point.made(options.fixed_point, shape.outputs, tiles)
    outputs = [jax.ShapeDtypeStruct((shape.rows, shape.outputs), dtype) for dtype in dtypes]
    if bits is not None:
        outputs[:1] = fixed_point.outputs(shape.rows, shape.outputs, bits)
    if tiles.splits > 1:
        results = combine(
            _partial_sums(options, x, weight, prefetch), bias=weight.bias, residual=residual, norm=norm,
            norm_offset=options.norm_offset, dtypes=dtypes, interpret=options.interpret,
        )  # fmt: skip
        return _result(results, norm, x.dtype)

    def kernel(refs, *out_refs):
        stream = Stream(
            x_ref=fixed_point.refs_of(refs), norm_ref=None, weight=weight_refs(refs), shape=shape, tiles=tiles,
            norm=None, interpret=options.interpret, prefetch_ref=refs.prefetch, prefetch_bytes=options.prefetch_bytes,
            early=early,
        )  # fmt: skip

        def before(block):
            """Where each group's sums go, and what is added to them."""
            columns = block.first + jnp.arange(tiles.block_n, dtype=jnp.int32)
            prepared = []
            for rows, valid in stream.row_groups():
                mask = valid[:, None] & (columns < shape.outputs)[None, :]
                term, gain = jnp.zeros(mask.shape, jnp.float32), None
                if refs.bias is not None:
                    term += gather(refs.bias, columns[None, :], mask=mask)
                if refs.residual is not None:
                    term += gather(refs.residual, rows[:, None], columns[None, :], mask=mask)
                if refs.norm is not None:
                    gain = gather(refs.norm, columns[None, :], mask=mask) + options.norm_offset
                prepared.append((rows, columns, mask, term, gain))
            return prepared

        def finish(block, prepared, sums):
            (rows, columns, mask, term, gain), (y,) = prepared, sums
            y += term
            y_refs, values = out_refs, [y] if gain is None else [y * gain, y]
            if bits is not None:
                fixed, *y_refs = out_refs[:2], *out_refs[2:]
                fixed_point.save(fixed, rows, block.first, values.pop(0), shape.outputs, interpret=options.interpret)
            for y_ref, value in zip(y_refs, values, strict=False):  # behind them the squares
                scatter(y_ref, rows[:, None], columns[None, :], value=value, mask=mask, interpret=options.interpret)
            if gain is not None:
                squares = jnp.sum(jnp.where(mask, y * y, 0.0), axis=1)
                scatter(
                    out_refs[-1], rows, block.index, value=squares, mask=rows < shape.rows, interpret=options.interpret
                )

        stream.run(finish, before)

    if norm is not None:
        outputs.append(jax.ShapeDtypeStruct((shape.rows, blocks_of(shape, tiles)), jnp.float32))
    results = launch(
        kernel,
        name=options.op,
        grid=(programs_of(shape, tiles),),
        inputs=streamed(weight)
        | fixed_point.inputs(x)
        | dict(bias=weight.bias, residual=residual, norm=norm, prefetch=flat_values(prefetch)),
        outputs=outputs,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=options.interpret,
    )
    return _result(results, norm, x.dtype)


def _partial_sums(options, x, weight, prefetch):
    """float32 [splits, M, O]."""
    shape, tiles = options.shape, options.tiles

    def kernel(refs, partial_ref):
        stream = Stream(
            x_ref=fixed_point.refs_of(refs), norm_ref=None, weight=weight_refs(refs), shape=shape, tiles=tiles,
            norm=None, interpret=options.interpret, prefetch_ref=refs.prefetch, prefetch_bytes=options.prefetch_bytes,
        )  # fmt: skip

        def finish(block, group, sums):
            (rows, valid), (y,) = group, sums
            columns = block.first + jnp.arange(tiles.block_n, dtype=jnp.int32)
            mask = valid[:, None] & (columns < shape.outputs)[None, :]
            index = stream.split(), rows[:, None], columns[None, :]
            scatter(partial_ref, *index, value=y, mask=mask, interpret=options.interpret)

        stream.run(finish)

    (partial,) = launch(
        kernel,
        name=options.op,
        grid=(programs_of(shape, tiles), tiles.splits),
        inputs=streamed(weight) | fixed_point.inputs(x) | dict(prefetch=flat_values(prefetch)),
        outputs=[jax.ShapeDtypeStruct((tiles.splits, shape.rows, shape.outputs), jnp.float32)],
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=options.interpret,
    )
    return partial


def _result(results, norm, dtype):
    if norm is None:
        return results[0]
    *rows, total, squares = results
    return DeferredNorm(x=fixed_point.made_of(rows, dtype), squares=squares), total
