"""The obvious head: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

import jax.numpy as jnp

from pallas_kernels.common.arithmetic import cap, project
from pallas_kernels.common.deferred_norm import finish_norm


def head_logits(options, *, x, norm, weight):
    """As `api.head_logits`."""
    logits = project(finish_norm(x, norm, options.eps, options.norm_offset), weight)
    return cap(logits, options.soft_cap)


def head(options, *, x, norm, weight):
    """As `api.head`."""
    logits = head_logits(options, x=x, norm=norm, weight=weight)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return token, jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
