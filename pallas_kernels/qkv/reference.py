"""The obvious qkv: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

import jax.numpy as jnp

from pallas_kernels.common.arithmetic import project, rms_norm
from pallas_kernels.common.kv_cache import KVCache, locate
from pallas_kernels.common.weighted import normed
from pallas_kernels.common.weights import rotary_pairs


def qkv(options, *, x, norm, weight, cache, positions, sequence, page_table, rope, q_norm, k_norm, prefetch):
    """As `api.qkv`, with every optional array present or None."""
    del prefetch
    heads, kv_heads, head_dim = options.num_heads, cache.k.shape[1], cache.k.shape[3]
    hidden = normed(x, norm, options.eps, options.norm_offset)
    pairs = project(hidden, weight.rows)  # [B, (N + 2K) * H / 2, 2]
    if weight.bias is not None:
        pairs = pairs + weight.bias.astype(jnp.float32)
    rotary_dim = head_dim if rope is None else 2 * rope[0].shape[1]
    place = jnp.argsort(jnp.array(rotary_pairs(head_dim, rotary_dim)).reshape(-1))
    out = pairs.reshape(pairs.shape[0], heads + 2 * kv_heads, head_dim)[:, :, place]
    q, k, v = jnp.split(out, (heads, heads + kv_heads), axis=1)
    if q_norm is not None:
        q = rms_norm(q, q_norm, options.eps, options.norm_offset)
        k = rms_norm(k, k_norm, options.eps, options.norm_offset)
    if rope is not None:
        q, k = rotate(q, positions, rope), rotate(k, positions, rope)
    page, slot = locate(cache.k, positions, sequence, page_table)
    new_k = cache.k.at[page, :, slot].set(k.astype(cache.k.dtype), mode="drop")
    new_v = cache.v.at[page, :, slot].set(v.astype(cache.v.dtype), mode="drop")
    return q.astype(weight.rows.dtype), KVCache(k=new_k, v=new_v)


def rotate(x, positions, rope):
    """RoPE (Su et al. 2021), split halves: x float32 [B, heads, H], tables [S, R / 2]; dimensions past R pass."""
    cos, sin = (table[jnp.clip(positions, 0, table.shape[0] - 1)][:, None].astype(jnp.float32) for table in rope)
    half = cos.shape[-1]
    low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1)
