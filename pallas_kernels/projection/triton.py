"""The Triton kernel of out and down: stream the rows, add bias and residual, store."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.common.blocks import gather, scatter
from pallas_kernels.common.launch import launch
from pallas_kernels.common.prefetch import flat_rows
from pallas_kernels.common.stream import Stream


def projection(options, *, x, weight, residual, prefetch):
    """As `api.out`, with x [B, I] and every optional array present or None."""
    shape, tiles = options.shape, options.tiles
    ragged = shape.outputs % tiles.block_n != 0

    def kernel(refs, *y_refs):
        first = pl.program_id(0) * tiles.block_n
        stream = Stream(
            x_ref=refs.x, norm_ref=None, w_ref=refs.w, first_row=first, limit=shape.outputs if ragged else None,
            shape=shape, tiles=tiles, norm=None, interpret=options.interpret,
            prefetch_ref=refs.prefetch, prefetch_bytes=options.prefetch_bytes, early=True,
        )  # fmt: skip
        columns = first + jnp.arange(tiles.block_n, dtype=jnp.int32)
        # What is added at the end is loaded at the start, while the weights are on their way.
        places, added = [], []
        for rows, valid in stream.row_groups():
            mask = valid[:, None] & (columns < shape.outputs)[None, :]
            places.append((rows[:, None], columns[None, :], mask))
            term = jnp.zeros(mask.shape, jnp.float32)
            if refs.bias is not None:
                term += gather(refs.bias, columns[None, :], mask=mask)
            if refs.residual is not None:
                term += gather(refs.residual, rows[:, None], columns[None, :], mask=mask)
            added.append(term)
        for (row, column, mask), term, (y,) in zip(places, added, stream.sums(), strict=True):
            for y_ref in y_refs:
                scatter(y_ref, row, column, value=y + term, mask=mask, interpret=options.interpret)

    dtypes = (x.dtype, jnp.float32) if options.wide else (x.dtype,)
    results = launch(
        kernel,
        name=options.op,
        grid=(pl.cdiv(shape.outputs, tiles.block_n),),
        inputs=dict(x=x, w=weight.rows, bias=weight.bias, residual=residual, prefetch=flat_rows(prefetch)),
        outputs=[jax.ShapeDtypeStruct((shape.rows, shape.outputs), dtype) for dtype in dtypes],
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=options.interpret,
    )
    return tuple(results) if options.wide else results[0]
