"""A model over whole sequences: as it is, with the residual stream of every layer, and in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ablation.oracle import norm, times
from pallas_kernels import activate
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.decoder import Llama
from tokenspeed.models.prefill_attention import attend


@jax.jit
def forward(model: Llama, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(logits float32 [B, T, V], the residual stream after each layer [L, B, T, D]) of tokens int32 [B, T]."""
    batch, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    cos, sin = (table[:, None] for table in model.rope_tables(length))
    x, streams = model.embedding[...][tokens], []
    for block, layer in zip(model.blocks, model.config.layers, strict=True):
        q, k, v = model.qkv(block, x, cos, sin)
        k, v = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
        x = model.rest(block, x, attend(q, k, v, positions, window=layer.window))
        streams.append(x)
    return model.logits(x), jnp.stack(streams)


def logits_in_float64(model: Llama, tokens: jax.Array) -> np.ndarray:
    """float64 [B, T, V] of tokens int32 [B, T]: its weights, or what quantised ones stand for, by XLA in float64."""
    config = model.config
    with jax.enable_x64(True):
        x = model.embedding[...][tokens].astype(jnp.float64)
        rope = tuple(table.astype(jnp.float64)[:, None] for table in model.rope_tables(tokens.shape[1]))
        for block, layer in zip(model.blocks, config.layers, strict=True):
            weights = [linear.weight for linear in (block.qkv, block.out, block.gate_up, block.down)]
            norms = block.attention_norm[...], block.mlp_norm[...]
            x = _layer(x, norms, weights, rope, config, layer.window)
        return np.asarray(_head(x, model.norm[...], model.head_weight, config.eps))


@functools.partial(jax.jit, static_argnums=(4, 5))
def _layer(x, norms, weights, rope, c: ModelConfig, window):
    w_qkv, w_out, w_gate_up, w_down = weights
    batch, length, _ = x.shape
    turned = c.num_heads + c.num_kv_heads
    pairs = times(norm(x, norms[0], c.eps), w_qkv).reshape(batch, length, -1, c.head_dim // 2, 2)
    low, high = pairs[..., 0], pairs[..., 1]
    cos, sin = rope
    rotated = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1)
    q, k = rotated[:, :, : c.num_heads], rotated[:, :, c.num_heads : turned]
    v = jnp.concatenate([low, high], -1)[:, :, turned:]
    q = q.reshape(batch, length, c.num_kv_heads, -1, c.head_dim) * c.head_dim**-0.5
    at = jnp.arange(length)
    seen = at <= at[:, None]
    if window is not None:
        seen &= at > at[:, None] - window
    weight = jax.nn.softmax(jnp.where(seen, jnp.einsum("btkgh,bskh->bkgts", q, k), -jnp.inf), -1)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weight, v)
    x = x + times(mixed.reshape(batch, length, -1), w_out)
    both = times(norm(x, norms[1], c.eps), w_gate_up)
    return x + times(activate(c.activation, both[..., 0]) * both[..., 1], w_down)


@functools.partial(jax.jit, static_argnums=3)
def _head(x, gain, weight, eps):
    return times(norm(x, gain, eps), weight)
