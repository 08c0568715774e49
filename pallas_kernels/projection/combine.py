"""The second launch of out and down with splits: adds the partial sums up, and what the first one would have added."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.common.blocks import Span, load, store
from pallas_kernels.common.launch import launch, launch_dependents

MOST_COLUMNS, WARPS = 1024, 4


def combine(
    partial: jax.Array,
    *,
    bias: jax.Array | None,
    residual: jax.Array | None,
    norm: jax.Array | None,
    norm_offset: float,
    dtypes: Sequence[str],
    interpret: bool,
) -> list[jax.Array]:
    """The sum over the splits, plus bias and residual; with a norm what `DeferredNorm` holds.

    Args:
        partial: float32 [splits, M, O]. bias: [O], residual: [M, O], norm: [O], or None. norm_offset: of the norm.
        dtypes: of the results [M, O]: the sum, or with a norm first the sum times the norm's weight.

    Returns:
        Those, and with a norm float32 [M, parts], the squares of the sum.
    """
    splits, rows, outputs = partial.shape
    block = min(MOST_COLUMNS, max(16, pl.next_power_of_2(outputs)))
    parts = pl.cdiv(outputs, block)

    def kernel(refs, *out_refs):
        launch_dependents(interpret)
        row, part = pl.program_id(0), pl.program_id(1)
        columns = Span(part * block, block, outputs if outputs % block else None)
        value = jnp.zeros((block,), jnp.float32)
        for split in range(splits):
            value += load(refs.partial, split, row, columns, interpret=interpret)
        if refs.bias is not None:
            value += load(refs.bias, columns, interpret=interpret).astype(jnp.float32)
        if refs.residual is not None:
            value += load(refs.residual, row, columns, interpret=interpret).astype(jnp.float32)
        results = [value]
        if refs.norm is not None:
            gain = load(refs.norm, columns, interpret=interpret).astype(jnp.float32) + norm_offset
            results.insert(0, value * gain)
            out_refs[-1][row, part] = jnp.sum(value * value)
        for ref, result in zip(out_refs, results, strict=False):
            store(ref, row, columns, value=result, interpret=interpret)

    shapes = [jax.ShapeDtypeStruct((rows, outputs), dtype) for dtype in dtypes]
    if norm is not None:
        shapes.append(jax.ShapeDtypeStruct((rows, parts), jnp.float32))
    return launch(
        kernel,
        name="combine",
        grid=(rows, parts),
        inputs=dict(partial=partial, bias=bias, residual=residual, norm=norm),
        outputs=shapes,
        num_warps=WARPS,
        num_stages=1,
        interpret=interpret,
    )
