"""The Triton kernel of gate_up: a gate row and its up row stream together, so the product needs no second pass."""

import jax
import jax.numpy as jnp

from pallas_kernels.common import fixed_point
from pallas_kernels.common.arithmetic import activate
from pallas_kernels.common.blocks import gather, scatter
from pallas_kernels.common.launch import launch
from pallas_kernels.common.prefetch import flat_values
from pallas_kernels.common.prenorm import Norm, prenorm
from pallas_kernels.common.stream import Stream, programs_of
from pallas_kernels.common.weight_block import streamed, weight_refs


def gate_up(options, *, x, norm, weight, prefetch):
    """As `api.gate_up`."""
    shape, tiles = options.shape, options.tiles
    fused = Norm(eps=options.eps, offset=options.norm_offset)
    activations = prenorm(fused, x, norm, tiles, shape, interpret=options.interpret)

    bits = fixed_point.made(options.fixed_point, shape.outputs, tiles)

    def kernel(refs, *y_refs):
        stream = Stream(
            x_ref=fixed_point.refs_of(refs), norm_ref=refs.norm, weight=weight_refs(refs), shape=shape, tiles=tiles,
            norm=activations.norm, interpret=options.interpret, squares_ref=refs.squares, prefetch_ref=refs.prefetch,
            prefetch_bytes=options.prefetch_bytes,
        )  # fmt: skip

        def finish(block, group, sums):
            (rows, valid), (gate, up) = group, sums
            columns = block.first + jnp.arange(tiles.block_n, dtype=jnp.int32)
            mask = valid[:, None] & (columns < shape.outputs)[None, :]
            if refs.bias is not None:
                gate += gather(refs.bias, columns[None, :], 0, mask=mask)
                up += gather(refs.bias, columns[None, :], 1, mask=mask)
            y = activate(options.activation, gate) * up
            if bits is None:
                scatter(y_refs[0], rows[:, None], columns[None, :], value=y, mask=mask, interpret=options.interpret)
            else:
                fixed_point.save(y_refs, rows, block.first, y, shape.outputs, interpret=options.interpret)

        stream.run(finish)

    outputs = [jax.ShapeDtypeStruct((shape.rows, shape.outputs), shape.dtype)]
    if bits is not None:
        outputs = fixed_point.outputs(shape.rows, shape.outputs, bits)
    results = launch(
        kernel,
        name="gate_up",
        grid=(programs_of(shape, tiles),),
        inputs=activations.inputs() | streamed(weight) | dict(bias=weight.bias, prefetch=flat_values(prefetch)),
        outputs=outputs,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=options.interpret,
    )
    return fixed_point.made_of(results, shape.dtype)
