"""The LLaMA decoder in Flax: its weights lie as the kernels read them, its differences come from the config.

Dimensions: B batch, T tokens, S slots of the cache, D model, F feed-forward, N query heads, K kv heads, H head
dimension, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels import DenseWeight, KVCache, QuantisedWeight, Weight, activate, project, rms_norm, rope_and_cache
from tokenspeed.measure.available_memory import needing
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.prefill_attention import attend, attend_chunk, of_sequences
from tokenspeed.models.quantisation import Quantisation
from tokenspeed.models.rope import tables

INIT_SCALE = 0.02


class Linear(nnx.Module):
    """A projection in the kernels' layout: values [O, I] or [O, 2, I], bias [O] or [O, 2] or None."""

    def __init__(self, shape: tuple[int, ...], bias: bool, dtype, rngs: nnx.Rngs):
        normal = jax.random.normal(rngs.params(), shape, jnp.float32)
        self.values = nnx.Param((INIT_SCALE * normal).astype(dtype))
        self.bias = nnx.Param(jnp.zeros(shape[:-1], dtype)) if bias else None

    @property
    def weight(self) -> DenseWeight:
        return DenseWeight(values=self.values[...], bias=None if self.bias is None else self.bias[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, I] to [B, T, O] or [B, T, O, 2] of x's dtype; sums are float32."""
        return project(x, self.weight, out_dtype=x.dtype)


class QuantisedLinear(nnx.Module):
    """A projection whose weight is quantised; attributes as those of `QuantisedWeight`.

    Args:
        quantisation: of the model, whose activations are the weight's.
    """

    def __init__(self, weight: QuantisedWeight, quantisation: Quantisation | None = None):
        self.values, self.scales = nnx.Param(weight.values), nnx.Param(weight.scales)
        self.zeros = None if weight.zeros is None else nnx.Param(weight.zeros)
        self.bias = nnx.data(None if weight.bias is None else nnx.Param(weight.bias))  # a checkpoint's comes later
        self.group, self.dtype = weight.group, weight.dtype
        self.activations = weight.activations if quantisation is None else quantisation.activations

    @property
    def weight(self) -> QuantisedWeight:
        return QuantisedWeight(
            values=self.values[...],
            scales=self.scales[...],
            zeros=None if self.zeros is None else self.zeros[...],
            bias=None if self.bias is None else self.bias[...],
            group=self.group,
            dtype=self.dtype,
            activations=self.activations,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """As `Linear`."""
        return project(x, self.weight, out_dtype=x.dtype)


class Block(nnx.Module):
    """A decoder layer."""

    def __init__(self, config: ModelConfig, dtype, rngs: nnx.Rngs):
        c = config
        heads = c.num_heads + 2 * c.num_kv_heads
        self.attention_norm = nnx.Param(jnp.ones((c.d_model,), dtype))
        self.qkv: Linear | QuantisedLinear = Linear((heads * c.head_dim // 2, 2, c.d_model), c.qkv_bias, dtype, rngs)
        self.out: Linear | QuantisedLinear = Linear((c.d_model, c.num_heads * c.head_dim), c.out_bias, dtype, rngs)
        self.mlp_norm = nnx.Param(jnp.ones((c.d_model,), dtype))
        self.gate_up: Linear | QuantisedLinear = Linear((c.d_ff, 2, c.d_model), c.mlp_bias, dtype, rngs)
        self.down: Linear | QuantisedLinear = Linear((c.d_model, c.d_ff), c.mlp_bias, dtype, rngs)


class Llama(nnx.Module):
    """A decoder-only transformer of the LLaMA kind.

    Args:
        config: the architecture.
        dtype: of weights and activations; sums, norms and the softmax are float32.
        rngs: draws the weights (`checkpoint.load` puts a checkpoint's in their place).
    """

    def __init__(self, config: ModelConfig, dtype=jnp.float32, *, rngs: nnx.Rngs):
        self.config = config
        table = jax.random.normal(rngs.params(), (config.vocab_size, config.d_model), jnp.float32)
        self.embedding = nnx.Param((INIT_SCALE * table).astype(dtype))  # [V, D]
        self.blocks = nnx.List([Block(config, dtype, rngs) for _ in range(config.num_layers)])
        self.norm = nnx.Param(jnp.ones((config.d_model,), dtype))
        head = None if config.tied else Linear((config.vocab_size, config.d_model), False, dtype, rngs)
        self.head: Linear | QuantisedLinear | None = nnx.data(head)
        self.kv_scales: Any = nnx.data(None)  # `kv_scales.KVScales` of a checkpoint that has some

    @property
    def dtype(self):
        return self.embedding.get_value().dtype

    @property
    def head_weight(self) -> Weight:
        return DenseWeight(values=self.embedding[...]) if self.head is None else self.head.weight

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits float32 [B, T, V] of tokens int32 [B, T], each of which sees those before it. Differentiable."""
        batch, length = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
        x = self.embedding[...][tokens]
        cos, sin = rotation(self.rope_tables(length), positions)
        for block, layer in zip(self.blocks, self.config.layers, strict=True):
            q, k, v = self.qkv(block, x, cos, sin)
            k, v = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
            x = self.rest(block, x, attend(q, k, v, positions, window=layer.window))
        return self.logits(x)

    def prefill(
        self,
        caches: list[KVCache],
        tokens: jax.Array,
        positions: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        *,
        capacity: int,
        start: jax.Array | None = None,
        page_table: jax.Array | None = None,
        prefill_backend: str = "xla",
        implementation: str | None = "xla",
    ) -> tuple[jax.Array, list[KVCache]]:
        """Runs any number of tokens of each sequence and writes their keys and values into the caches.

        Tokens attend to keys and values as the cache holds them, those of their own chunk too: rounded alike, however a
        prompt is cut and whether its beginning was found.

        Args:
            caches: of each layer; sequence i has page i, or the pages of `page_table[i]`.
            tokens: int32 [B, T].
            positions: int32 [B, T], each token's in its sequence, ascending; -1 for padding, which writes nothing.
            rope: from `rope_tables`.
            capacity: a bound of the positions (static): no slot from there on is looked at.
            start: int32 [B], from where each sequence's positions count up; None where all begin at 0. It is 'cudnn'
                that needs it.
            page_table: int32 [B, pages of a sequence], or None for contiguous caches.
            prefill_backend: 'xla', or 'cudnn', for tokens whose positions count up without a gap, padding last.
            implementation: of `rope_and_cache`, see `pallas_kernels.resolve_implementation`.

        Returns:
            (the residual stream [B, T, D], the caches).
        """
        batch, length = tokens.shape
        x = self.embedding[...][tokens]
        sequence = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), length)
        new = []
        for block, cache, layer in zip(self.blocks, caches, self.config.layers, strict=True):
            pairs = block.qkv(self.normed(x, block.attention_norm))
            *heads, cache = rope_and_cache(
                pairs.reshape(batch * length, *pairs.shape[2:]), cache, positions=positions.reshape(-1), rope=rope,
                sequence=sequence, page_table=page_table, out_dtype=x.dtype, implementation=implementation,
            )  # fmt: skip
            q, k, v = (one.reshape(batch, length, *one.shape[1:]) for one in heads)
            new.append(cache)
            if prefill_backend == "cudnn":
                mixed = attend_chunk(
                    q, k, v, cache, start, window=layer.window, capacity=capacity, page_table=page_table
                )
            else:
                k, v = of_sequences(cache, batch, page_table, capacity, x.dtype)
                mixed = attend(q, k, v, positions, window=layer.window)
            x = self.rest(block, x, mixed)
        return x, new

    def rope_tables(self, positions: int) -> tuple[jax.Array, jax.Array]:
        """(cos, sin) of that many positions: float32 [positions, H / 2] each.

        Raises:
            NotEnoughMemory: they take more than there is.
        """
        with needing(4 * positions * self.config.head_dim, f"RoPE tables of {positions} positions"):
            cos, sin = tables(self.config.rope, self.config.head_dim, positions)
            return jnp.asarray(cos), jnp.asarray(sin)

    def qkv(self, block: Block, x: jax.Array, cos: jax.Array, sin: jax.Array):
        """q [B, T, N, H], k and v [B, T, K, H] of the residual stream x [B, T, D], q and k rotated, in x's dtype."""
        c = self.config
        pairs = block.qkv(self.normed(x, block.attention_norm)).astype(jnp.float32)
        pairs = pairs.reshape(*x.shape[:2], c.num_heads + 2 * c.num_kv_heads, c.head_dim // 2, 2)
        low, high = pairs[..., 0], pairs[..., 1]
        turned = c.num_heads + c.num_kv_heads
        low, high = (
            jnp.concatenate([turn[:, :, :turned], plain[:, :, turned:]], axis=2)
            for turn, plain in ((low * cos - high * sin, low), (high * cos + low * sin, high))
        )
        heads = jnp.concatenate([low, high], axis=-1).astype(x.dtype)
        return tuple(jnp.split(heads, (c.num_heads, turned), axis=2))

    def rest(self, block: Block, x: jax.Array, mixed: jax.Array) -> jax.Array:
        """What follows attention in a layer: both residual adds and the MLP; mixed [B, T, N, H]."""
        x = x + block.out(mixed.reshape(*x.shape[:2], -1))
        both = block.gate_up(self.normed(x, block.mlp_norm)).astype(jnp.float32)
        product = (activate(self.config.activation, both[..., 0]) * both[..., 1]).astype(x.dtype)
        return x + block.down(product)

    def normed(self, x: jax.Array, norm: nnx.Param) -> jax.Array:
        """RMSNorm of x [..., D], in its dtype."""
        return rms_norm(x, norm[...], self.config.eps).astype(x.dtype)

    def logits(self, x: jax.Array) -> jax.Array:
        """float32 [..., V] of the residual stream [..., D]."""
        return project(self.normed(x, self.norm), self.head_weight)


def rotation(rope: tuple[jax.Array, jax.Array], positions: jax.Array) -> tuple[jax.Array, ...]:
    """(cos, sin) of `Llama.rope_tables` at positions [B, T]: float32 [B, T, 1, H / 2] each."""
    at = jnp.clip(positions, 0, rope[0].shape[0] - 1)
    return tuple(table[at][:, :, None] for table in rope)
