"""The obvious projection: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

import jax.numpy as jnp

from pallas_kernels.common.arithmetic import project


def projection(options, *, x, weight, residual, prefetch):
    """As `api.out`, with x [B, I] and every optional array present or None."""
    del prefetch
    y = project(x, weight.rows)
    for term in (weight.bias, residual):
        if term is not None:
            y = y + term.astype(jnp.float32)
    return (y.astype(x.dtype), y) if options.wide else y.astype(x.dtype)
