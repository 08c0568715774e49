"""The obvious projection: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

import dataclasses
from typing import Any

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
        how: dict[str, Any] = dict(offset=options.norm_offset, part=options.tiles.block_n)
        if bits is None:
            return defer_norm(y, norm, dtype=x.dtype, **how), y
        deferred = defer_norm(y, norm, dtype=jnp.float32, **how)
        rows = fixed_point.to_fixed_point(fixed_point.to_floats(deferred.x), bits, dtype=x.dtype)
        return dataclasses.replace(deferred, x=rows), y
    return y.astype(options.out_dtype)
