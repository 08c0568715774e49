"""The obvious rope_and_cache: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

import jax.numpy as jnp

from pallas_kernels.common.arithmetic import rms_norm, rotate
from pallas_kernels.common.weights import unpacked_order


def rope_and_cache(options, **operands):
    """As `api.rope_and_cache`, with every optional array present or None."""
    return of_pairs(
        heads=options.num_heads, rotary_dim=options.rotary_dim, eps=options.eps, norm_offset=options.norm_offset,
        dtype=options.dtype, **operands,
    )  # fmt: skip


def of_pairs(
    pairs, *, cache, positions, sequence, page_table, rope, q_norm, k_norm, heads, rotary_dim, eps, norm_offset, dtype
):
    """As `api.rope_and_cache`; q of that dtype."""
    kv_heads, head_dim = cache.k.shape[1], cache.k.shape[3]
    order = unpacked_order(head_dim, rotary_dim)
    out = pairs.astype(jnp.float32).reshape(pairs.shape[0], heads + 2 * kv_heads, head_dim)[:, :, order]
    # What would be an error, were it known here, is NaN.
    page, _ = cache.locate(positions, sequence, page_table)
    fault = (positions >= 0) & (page == cache.k.shape[0])
    if rope is not None:
        fault |= positions >= rope[0].shape[0]
    out = jnp.where(fault[:, None, None], jnp.nan, out)
    q, k, v = jnp.split(out, (heads, heads + kv_heads), axis=1)
    if q_norm is not None:
        q = rms_norm(q, q_norm, eps, norm_offset)
        k = rms_norm(k, k_norm, eps, norm_offset)
    if rope is not None:
        q, k = rotate(q, positions, rope), rotate(k, positions, rope)
    k, v = cache.rounded(k, v)
    return q.astype(dtype), k, v, cache.placed(k, v, positions, sequence, page_table)
