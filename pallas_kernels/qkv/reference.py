"""The obvious qkv: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

import jax.numpy as jnp

from pallas_kernels.common.arithmetic import project, rms_norm, rotate
from pallas_kernels.common.deferred_norm import finish_norm
from pallas_kernels.common.weights import unpacked_order


def qkv(options, *, x, norm, weight, cache, positions, sequence, page_table, rope, q_norm, k_norm, prefetch):
    """As `api.qkv`, with every optional array present or None."""
    del prefetch
    heads, kv_heads, head_dim = options.num_heads, cache.k.shape[1], cache.k.shape[3]
    hidden = finish_norm(x, norm, options.eps, options.norm_offset)
    pairs = project(hidden, weight)  # [B, (N + 2K) * H / 2, 2]
    order = unpacked_order(weight, head_dim)
    out = pairs.reshape(pairs.shape[0], heads + 2 * kv_heads, head_dim)[:, :, order]
    # What would be an error, were it known here, is NaN.
    page, _ = cache.locate(positions, sequence, page_table)
    fault = (positions >= 0) & (page == cache.k.shape[0])
    if rope is not None:
        fault |= positions >= rope[0].shape[0]
    out = jnp.where(fault[:, None, None], jnp.nan, out)
    q, k, v = jnp.split(out, (heads, heads + kv_heads), axis=1)
    if q_norm is not None:
        q = rms_norm(q, q_norm, options.eps, options.norm_offset)
        k = rms_norm(k, k_norm, options.eps, options.norm_offset)
    if rope is not None:
        q, k = rotate(q, positions, rope), rotate(k, positions, rope)
    cache = cache.write(k, v, positions=positions, sequence=sequence, page_table=page_table)
    return q.astype(weight.dtype), cache
