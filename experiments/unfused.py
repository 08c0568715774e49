"""The ops of a decode step with one fusion undone each: the same streaming kernels, and XLA for what they took along.

A namespace of these stands in for `pallas_kernels` where `tokenspeed.decode` takes its kernels. They exist to be
measured against; only what a LLaMA needs is here.
"""

import types
from typing import Any

import jax
import jax.numpy as jnp

import pallas_kernels as pk
from pallas_kernels import DenseWeight, KVCache
from pallas_kernels.common.arithmetic import activate
from pallas_kernels.common.kv_cache import locate
from pallas_kernels.common.weighted import normed, weigh
from pallas_kernels.qkv.reference import rotate


def kernels(**others: Any) -> types.SimpleNamespace:
    """The fused kernels, but for those that are given."""
    return types.SimpleNamespace(**{name: getattr(pk, name) for name in pk.__all__} | others)


def _flat(weight: DenseWeight) -> DenseWeight:
    """The pairs of rows as rows: no copy."""
    bias = None if weight.bias is None else weight.bias.reshape(-1)
    return DenseWeight(rows=weight.rows.reshape(-1, weight.rows.shape[-1]), bias=bias)


def qkv(x, norm, weight, cache, *, positions, rope, sequence, page_table, eps, **how) -> tuple[jax.Array, KVCache]:
    """As `pk.qkv`: RMSNorm, the rotation and the write into the cache are XLA's; the product alone is the kernel's."""
    hidden = normed(x, norm, eps, 0.0).astype(weight.rows.dtype)
    pairs = pk.out(hidden, _flat(weight), **how)
    kv_heads, head_dim = cache.k.shape[1], cache.k.shape[3]
    low, high = jnp.moveaxis(pairs.reshape(len(pairs), -1, head_dim // 2, 2), -1, 0)
    heads = jnp.concatenate([low, high], axis=-1).astype(jnp.float32)
    q, k, v = jnp.split(heads, (heads.shape[1] - 2 * kv_heads, heads.shape[1] - kv_heads), axis=1)
    page, slot = locate(cache.k, positions, sequence, page_table)
    k, v = (
        old.at[page, :, slot].set(new.astype(old.dtype), mode="drop")
        for old, new in ((cache.k, rotate(k, positions, rope)), (cache.v, v))
    )
    return rotate(q, positions, rope).astype(pairs.dtype), KVCache(k=k, v=v)


def gate_up(x, norm, weight, *, activation, eps, **how) -> jax.Array:
    """As `pk.gate_up`: RMSNorm and the gated activation are XLA's."""
    hidden = normed(x, norm, eps, 0.0).astype(weight.rows.dtype)
    both = pk.down(hidden, _flat(weight), **how).astype(jnp.float32)
    return (activate(activation, both[:, ::2]) * both[:, 1::2]).astype(hidden.dtype)


def out(x, weight, *, residual, wide=False, norm=None, **how) -> Any:
    """As `pk.out`: the residual is added by XLA."""
    return _added(pk.out(x, weight, **how), residual, wide, norm)


def down(x, weight, *, residual, wide=False, norm=None, **how) -> Any:
    """As `pk.down`: the residual is added by XLA."""
    return _added(pk.down(x, weight, **how), residual, wide, norm)


def _added(product, residual, wide, norm):
    y = product.astype(jnp.float32) + residual.astype(jnp.float32)
    if norm is not None:
        return weigh(y, norm, 0.0, dtype=product.dtype, part=y.shape[1]), y
    return y if wide else y.astype(product.dtype)


def head(x, norm, weight, **how) -> tuple[jax.Array, jax.Array]:
    """As `pk.head`: all logits go to memory, and XLA looks for the largest."""
    logits = pk.head_logits(x, norm, weight, **how)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return token, jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]


def attention(q, cache, **how) -> jax.Array:
    """As `pk.attention`, all of it XLA's."""
    return pk.attention(q, cache, **how | dict(implementation="xla"))
