"""The Triton kernel of out and down: stream the rows, add bias and residual, store."""

import jax
import jax.numpy as jnp

from pallas_kernels.common.blocks import gather, scatter
from pallas_kernels.common.launch import launch
from pallas_kernels.common.prefetch import flat_rows
from pallas_kernels.common.stream import Stream, programs_of


def projection(options, *, x, weight, residual, prefetch):
    """As `api.out`, with x [B, I] and every optional array present or None."""
    shape, tiles = options.shape, options.tiles

    def kernel(refs, *y_refs):
        stream = Stream(
            x_ref=refs.x, norm_ref=None, w_ref=refs.w, shape=shape, tiles=tiles, norm=None,
            interpret=options.interpret, prefetch_ref=refs.prefetch, prefetch_bytes=options.prefetch_bytes, early=True,
        )  # fmt: skip

        def before(block):
            """Where each group's sums go, and what is added to them."""
            columns = block.first + jnp.arange(tiles.block_n, dtype=jnp.int32)
            prepared = []
            for rows, valid in stream.row_groups():
                mask = valid[:, None] & (columns < shape.outputs)[None, :]
                term = jnp.zeros(mask.shape, jnp.float32)
                if refs.bias is not None:
                    term += gather(refs.bias, columns[None, :], mask=mask)
                if refs.residual is not None:
                    term += gather(refs.residual, rows[:, None], columns[None, :], mask=mask)
                prepared.append((rows[:, None], columns[None, :], mask, term))
            return prepared

        def finish(block, prepared, sums):
            (row, column, mask, term), (y,) = prepared, sums
            for y_ref in y_refs:
                scatter(y_ref, row, column, value=y + term, mask=mask, interpret=options.interpret)

        stream.run(finish, before)

    dtypes = (x.dtype, jnp.float32) if options.wide else (x.dtype,)
    results = launch(
        kernel,
        name=options.op,
        grid=(programs_of(shape, tiles),),
        inputs=dict(x=x, w=weight.rows, bias=weight.bias, residual=residual, prefetch=flat_rows(prefetch)),
        outputs=[jax.ShapeDtypeStruct((shape.rows, shape.outputs), dtype) for dtype in dtypes],
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=options.interpret,
    )
    return tuple(results) if options.wide else results[0]
