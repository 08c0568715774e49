"""One decode step in float64: what the numerical drift of every other way to compute it is measured from.

Weights and cache are taken as they are, in their own dtype, so what is measured is the arithmetic and its rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import KVCache, QuantisedWeight, Weight, activate, dequantise
from tokenspeed.models.decoder import Llama


def logits(model: Llama, caches: list[KVCache], token: jax.Array, position: jax.Array) -> np.ndarray:
    """float64 [B, V] after `token` int32 [B], the one at `position` int32 [B]; caches contiguous, and left alone."""
    config = model.config
    with jax.enable_x64(True):
        x = model.embedding[...][token].astype(jnp.float64)
        cos, sin = (table[position].astype(jnp.float64) for table in model.rope_tables(caches[0].k.shape[2]))
        for block, cache, layer in zip(model.blocks, caches, config.layers, strict=True):
            weights = [w.weight for w in (block.qkv, block.out, block.gate_up, block.down)]
            norms = block.attention_norm[...], block.mlp_norm[...]
            x = _layer(x, norms, weights, cache, position, cos, sin, config, layer.window)
        return np.asarray(_head(x, model.norm[...], model.head_weight, config.eps))


def norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """RMSNorm of x float64 [..., D]."""
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + eps) * weight.astype(jnp.float64)


def times(x: jax.Array, weight: Weight) -> jax.Array:
    """float64 [..., O] or [..., O, 2] of x float64 [..., I]; a quantised weight is what its numbers stand for."""
    values = dequantise(weight) if isinstance(weight, QuantisedWeight) else weight.values
    y = jnp.tensordot(x, values.astype(jnp.float64), axes=(-1, -1))
    return y if weight.bias is None else y + weight.bias.astype(jnp.float64)


@functools.partial(jax.jit, static_argnums=(7, 8))
def _layer(x, norms, weights, cache, position, cos, sin, c, window):
    w_qkv, w_out, w_gate_up, w_down = weights
    batch, half, turned = x.shape[0], c.head_dim // 2, c.num_heads + c.num_kv_heads
    pairs = times(norm(x, norms[0], c.eps), w_qkv).reshape(batch, -1, half, 2)
    low, high = pairs[..., 0], pairs[..., 1]
    plain = jnp.concatenate([low, high], -1)
    cos, sin = cos[:, None], sin[:, None]
    rotated = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1)
    q, k, v = rotated[:, : c.num_heads], rotated[:, c.num_heads : turned], plain[:, turned:]
    # The new key and value stand beside the cache: nothing rounds them to its dtype.
    before = jnp.arange(cache.k.shape[2])[None] < position[:, None]
    if window is not None:
        before &= jnp.arange(cache.k.shape[2])[None] > position[:, None] - window
    keys, values = (jnp.where(before[:, None, :, None], old[:batch], 0).astype(x.dtype) for old in (cache.k, cache.v))
    q = q.reshape(batch, c.num_kv_heads, -1, c.head_dim) * c.head_dim**-0.5
    scores = jnp.where(before[:, None, None], jnp.einsum("bkgh,bksh->bkgs", q, keys), -jnp.inf)
    own = jnp.einsum("bkgh,bkh->bkg", q, k)[..., None]
    weight = jax.nn.softmax(jnp.concatenate([scores, own], -1), -1)
    mixed = jnp.einsum("bkgs,bksh->bkgh", weight[..., :-1], values) + weight[..., -1:] * v[:, :, None]
    x = x + times(mixed.reshape(batch, -1), w_out)
    both = times(norm(x, norms[1], c.eps), w_gate_up)
    return x + times(activate(c.activation, both[..., 0]) * both[..., 1], w_down)


@functools.partial(jax.jit, static_argnums=3)
def _head(x, gain, weight, eps):
    return times(norm(x, gain, eps), weight)
