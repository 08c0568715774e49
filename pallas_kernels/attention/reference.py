"""The obvious attention: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.common.arithmetic import cap


def attention(options, *, q, cache, lengths, sequence, page_table, counters, prefetch):
    """As `api.attention`, with every optional array present or None."""
    del prefetch
    batch, heads, head_dim = q.shape
    _, kv_heads, page_size, _ = cache.k.shape
    sequences = (cache.k if page_table is None else page_table).shape[0]
    sequence = jnp.arange(batch) if sequence is None else sequence
    # What would be an error, were it known here, is NaN.
    fault = (lengths > cache.capacity(page_table)) | (sequence < 0) | (sequence >= sequences)
    missing = None
    if page_table is None:
        k, v = cache.k[sequence], cache.v[sequence]  # [B, K, S, H]
    else:
        pages = page_table[sequence]  # [B, pages]
        missing = jnp.repeat((pages < 0) | (pages >= cache.k.shape[0]), page_size, axis=1)
        pages = jnp.maximum(pages, 0)
        k, v = (
            jnp.moveaxis(x[pages], 2, 1).reshape(batch, kv_heads, pages.shape[1] * page_size, head_dim)
            for x in (cache.k, cache.v)
        )
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    grouped = q.reshape(batch, kv_heads, heads // kv_heads, head_dim)
    keys = jnp.arange(k.shape[2])[None]
    lengths = jnp.minimum(lengths, cache.capacity(page_table))
    inside = keys < lengths[:, None]
    if options.window is not None:
        inside &= keys >= lengths[:, None] - options.window
    if missing is not None:
        fault |= jnp.any(inside & missing, axis=1)
    fault &= lengths > 0  # a row of no keys is zeros, whatever its sequence
    # What lies outside may be anything, NaN too: it is taken out of the values, not only out of the weights, and out of
    # the keys for the sake of gradients.
    k, v = (jnp.where(inside[:, None, :, None], x, 0) for x in (k, v))
    scores = jnp.einsum("bkgh,bksh->bkgs", grouped, k, precision=precision, preferred_element_type=jnp.float32)
    scores = cap(scores * options.scale, options.soft_cap)
    # A finite floor: a row of length 0 has no key inside, and gets zeros instead of NaN.
    mask = inside[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    weights = jnp.where(mask, weights, 0.0).astype(v.dtype)
    out = jnp.einsum("bkgs,bksh->bkgh", weights, v, precision=precision, preferred_element_type=jnp.float32)
    out = jnp.where(fault[:, None, None, None], jnp.nan, out)
    return out.reshape(q.shape).astype(q.dtype), counters
