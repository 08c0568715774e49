"""The obvious gate_up: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

from pallas_kernels.common import fixed_point
from pallas_kernels.common.arithmetic import activate, project
from pallas_kernels.common.deferred_norm import finish_norm


def gate_up(options, *, x, norm, weight, prefetch):
    """As `api.gate_up`."""
    del prefetch
    both = project(finish_norm(x, norm, options.eps, options.norm_offset), weight)  # [B, F, 2]
    y = activate(options.activation, both[..., 0]) * both[..., 1]
    bits = fixed_point.made(options.fixed_point, weight.shape[0], options.tiles)
    return y.astype(weight.dtype) if bits is None else fixed_point.to_fixed_point(y, bits, dtype=weight.dtype)
