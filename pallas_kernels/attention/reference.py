"""The obvious attention: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.common import fixed_point
from pallas_kernels.common.arithmetic import cap


def attention(options, *, q, cache, lengths, sequence, page_table, counters, prefetch):
    """As `api.attention`, with every optional array present or None."""
    del prefetch
    heads, head_dim = q.shape[-2:]
    batch = q.shape[0]
    tokens = q.shape[1] if q.ndim == 4 else 1
    _, kv_heads, page_size, _ = cache.k.shape
    group = heads // kv_heads
    sequences = (cache.k if page_table is None else page_table).shape[0]
    sequence = jnp.arange(batch) if sequence is None else sequence
    lengths = lengths.reshape(batch, tokens)
    # What would be an error, were it known here, is NaN; but a row of no keys is zeros, whatever its sequence.
    unknown = (sequence < 0) | (sequence >= sequences)
    # `lengths > 0` is asked of unknown sequences alone, and falls away where there can be none: XLA (of jax 0.11.2)
    # fuses it into the second product, and cannot compile that where another comparison there takes the same zero.
    fault = (lengths > cache.capacity(page_table)) | (unknown[:, None] & (lengths > 0))
    lengths = jnp.where(fault, 0, lengths)
    if page_table is None:
        k, v = cache.k[sequence], cache.v[sequence]  # [B, K, S, H]
    else:
        pages = page_table[sequence]  # [B, pages]
        k, v = (
            jnp.moveaxis(x[jnp.maximum(pages, 0)], 2, 1).reshape(batch, kv_heads, -1, head_dim)
            for x in (cache.k, cache.v)
        )
    keys = jnp.arange(k.shape[2])
    inside = keys < lengths[..., None]  # [B, T, S]
    if options.window is not None:
        inside &= keys >= lengths[..., None] - options.window
    if page_table is not None:
        missing = jnp.repeat((pages < 0) | (pages >= cache.k.shape[0]), page_size, axis=1)[:, None]
        fault |= jnp.any(inside & missing, axis=2)
        inside &= ~missing
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    # The query rows of a kv head: the heads of every token.
    grouped = jnp.moveaxis(q.reshape(batch, tokens, kv_heads, group, head_dim), 1, 2)
    grouped = grouped.reshape(batch, kv_heads, tokens * group, head_dim)
    # What no token attends to may be anything, NaN too: it is taken out of the values, not only out of the weights, and
    # out of the keys for the sake of gradients.
    k, v = (jnp.where(jnp.any(inside, axis=1)[:, None, :, None], x.astype(q.dtype), 0) for x in (k, v))
    scores = jnp.einsum("bkrh,bksh->bkrs", grouped, k, precision=precision, preferred_element_type=jnp.float32)
    scale = options.scale if cache.k_scale is None else options.scale * cache.k_scale[:, None, None]
    scores = cap(scores * scale, options.soft_cap)
    mask = jnp.repeat(inside, group, axis=1)[:, None]
    # A finite floor: a row of length 0 has no key inside, and gets zeros instead of NaN.
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    weights = jnp.where(mask, weights, 0.0).astype(v.dtype)
    out = jnp.einsum("bkrs,bksh->bkrh", weights, v, precision=precision, preferred_element_type=jnp.float32)
    if cache.v_scale is not None:
        out = out * cache.v_scale[:, None, None]
    out = jnp.moveaxis(out.reshape(batch, kv_heads, tokens, group, head_dim), 2, 1)
    out = jnp.where(fault[..., None, None, None], jnp.nan, out)
    if options.fixed_point is not None:
        rows = out.reshape(batch, heads * head_dim)
        return fixed_point.to_fixed_point(rows, options.fixed_point, dtype=q.dtype), counters
    return out.reshape(q.shape).astype(q.dtype), counters
