"""The obvious projection: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

import jax.numpy as jnp

from pallas_kernels.common.arithmetic import project
from pallas_kernels.common.weighted import weigh


def projection(options, *, x, weight, residual, norm, prefetch):
    """As `api.out`, with x [B, I] and every optional array present or None."""
    del prefetch
    y = project(x, weight.rows)
    for term in (weight.bias, residual):
        if term is not None:
            y = y + term.astype(jnp.float32)
    if norm is not None:
        return weigh(y, norm, options.norm_offset, dtype=x.dtype, part=options.tiles.block_n), y
    return y if options.wide else y.astype(x.dtype)
