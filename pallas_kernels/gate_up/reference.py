"""The obvious gate_up: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

import jax.numpy as jnp

from pallas_kernels.common.arithmetic import activate, project
from pallas_kernels.common.weighted import normed


def gate_up(options, *, x, norm, weight, prefetch):
    """As `api.gate_up`."""
    del prefetch
    both = project(normed(x, norm, options.eps, options.norm_offset), weight.rows)  # [B, F, 2]
    if weight.bias is not None:
        both = both + weight.bias.astype(jnp.float32)
    return (activate(options.activation, both[..., 0]) * both[..., 1]).astype(weight.rows.dtype)
