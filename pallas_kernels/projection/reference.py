"""The obvious projection: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

import dataclasses

import jax.numpy as jnp

from pallas_kernels.common import fixed_point
from pallas_kernels.common.arithmetic import project
from pallas_kernels.common.deferred_norm import defer_norm


def projection(options, *, x, weight, residual, norm, prefetch):
    """As `api.out`, with x [B, I] and every optional array present or None."""
    del prefetch
    y = project(fixed_point.to_floats(x), weight)
    if residual is not None:
        y = y + residual.astype(jnp.float32)
    if norm is not None:
        bits = fixed_point.made(options.fixed_point, weight.shape[0], options.tiles)
        dtype = x.dtype if bits is None else jnp.float32
        deferred = defer_norm(y, norm, options.norm_offset, dtype=dtype, part=options.tiles.block_n)
        if bits is not None:
            deferred = dataclasses.replace(deferred, x=fixed_point.to_fixed_point(deferred.x, bits, dtype=x.dtype))
        return deferred, y
    return y.astype(options.out_dtype)
