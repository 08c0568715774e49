"""The obvious gate_up: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

from pallas_kernels.common.arithmetic import activate, project
from pallas_kernels.common.deferred_norm import finish_norm


def gate_up(options, *, x, norm, weight, prefetch):
    """As `api.gate_up`."""
    del prefetch
    both = project(finish_norm(x, norm, options.eps, options.norm_offset), weight)  # [B, F, 2]
    return (activate(options.activation, both[..., 0]) * both[..., 1]).astype(weight.dtype)
