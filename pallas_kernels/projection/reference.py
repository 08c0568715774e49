"""The obvious projection: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

import jax.numpy as jnp

from pallas_kernels.common.arithmetic import project
from pallas_kernels.common.deferred_norm import defer_norm


def projection(options, *, x, weight, residual, norm, prefetch):
    """As `api.out`, with x [B, I] and every optional array present or None."""
    del prefetch
    y = project(x, weight)
    if residual is not None:
        y = y + residual.astype(jnp.float32)
    if norm is not None:
        return defer_norm(y, norm, options.norm_offset, dtype=x.dtype, part=options.tiles.block_n), y
    return y.astype(options.out_dtype)
