"""The ops of a decode step with one fusion undone each: the same streaming kernels, and XLA for what they took along.

They stand in for the ops of pallas_kernels where `decode_step` takes its kernels, to be measured against; only what a
LLaMA needs is here.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

import pallas_kernels as pk
from pallas_kernels import DenseWeight, KVCache


def _flat(weight: DenseWeight) -> DenseWeight:
    """The pairs of outputs one after the other: no copy."""
    bias = None if weight.bias is None else weight.bias.reshape(-1)
    return DenseWeight(values=weight.values.reshape(-1, weight.shape[-1]), bias=bias)


def qkv(x, norm, weight, cache, *, positions, rope, sequence, page_table, eps, **how) -> tuple[jax.Array, KVCache]:
    """As `pk.qkv`: RMSNorm, the rotation and the write into the cache are XLA's; the product alone is the kernel's."""
    hidden = pk.finish_norm(x, norm, eps).astype(weight.dtype)
    pairs = pk.out(hidden, _flat(weight), **how)
    kv_heads, head_dim = cache.k.shape[1], cache.k.shape[3]
    low, high = jnp.moveaxis(pairs.reshape(len(pairs), -1, head_dim // 2, 2), -1, 0)
    heads = jnp.concatenate([low, high], axis=-1).astype(jnp.float32)
    q, k, v = jnp.split(heads, (heads.shape[1] - 2 * kv_heads, heads.shape[1] - kv_heads), axis=1)
    k = pk.rotate(k, positions, rope)
    cache = cache.write(k, v, positions=positions, sequence=sequence, page_table=page_table)
    return pk.rotate(q, positions, rope).astype(pairs.dtype), cache


def gate_up(x, norm, weight, *, activation, eps, **how) -> jax.Array:
    """As `pk.gate_up`: RMSNorm and the gated activation are XLA's."""
    hidden = pk.finish_norm(x, norm, eps).astype(weight.dtype)
    both = pk.down(hidden, _flat(weight), **how).astype(jnp.float32)
    return (pk.activate(activation, both[:, ::2]) * both[:, 1::2]).astype(hidden.dtype)


def out(x, weight, *, residual, out_dtype=None, norm=None, fixed_point=None, **how) -> Any:
    """As `pk.out`: the residual is added by XLA."""
    return _added(pk.out(x, weight, **how), residual, out_dtype, norm, fixed_point)


def down(x, weight, *, residual, out_dtype=None, norm=None, fixed_point=None, **how) -> Any:
    """As `pk.down`: the residual is added by XLA."""
    return _added(pk.down(x, weight, **how), residual, out_dtype, norm, fixed_point)


def _added(product, residual, out_dtype, norm, bits):
    y = product.astype(jnp.float32) + residual.astype(jnp.float32)
    if bits is not None:
        deferred = pk.defer_norm(y, norm, dtype=jnp.float32, part=y.shape[1])
        rows = pk.to_fixed_point(pk.to_floats(deferred.x), bits, dtype=product.dtype)
        return dataclasses.replace(deferred, x=rows), y
    if norm is not None:
        return pk.defer_norm(y, norm, dtype=product.dtype, part=y.shape[1]), y
    return y.astype(product.dtype if out_dtype is None else out_dtype)


def head(x, norm, weight, **how) -> tuple[jax.Array, jax.Array]:
    """As `pk.head`: all logits go to memory, and XLA looks for the largest."""
    logits = pk.head_logits(x, norm, weight, **how)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return token, jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]


def attention(q, cache, **how) -> jax.Array:
    """As `pk.attention`, all of it XLA's."""
    return pk.attention(q, cache, **how | dict(implementation="xla"))
