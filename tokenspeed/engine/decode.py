"""The decode step: a few tokens of each sequence through the fused kernels."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import pallas_kernels as pk
from pallas_kernels import DeferredNorm, FixedPointRows, KVCache
from tokenspeed.models.decoder import Llama


def decode_step(
    model: Llama,
    caches: list[KVCache],
    tokens: jax.Array,
    positions: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    *,
    page_table: jax.Array | None = None,
    counters: jax.Array | None = None,
    implementation: str | None = None,
    deferred_norm: bool | None = None,
    kernels: Any = pk,
) -> tuple[jax.Array | DeferredNorm, list[KVCache], jax.Array | None]:
    """Runs T tokens of each of B sequences, each of which sees the cache and those before it.

    Args:
        model: its weights, packed for the kernels.
        caches: of each layer; donate them. Sequence i has page i, or the pages of `page_table[i]`.
        tokens: int32 [B, T].
        positions: int32 [B, T]; -1 for a row that is not in use, which writes nothing and sees nothing.
        rope: from `Llama.rope_tables`, for as many positions as there may be.
        page_table: int32 [B, pages of a sequence], or None for contiguous caches.
        counters: from `attention_counters(B, K, T)`; None makes them anew in each layer.
        implementation: of the kernels, see `pallas_kernels.resolve_implementation`.
        deferred_norm: whether `out` and `down` defer the norm that follows; None for all but XLA's
            implementation, which stays as it is commonly written.
        kernels: what has the ops by their names, and `fixed_point_bits`; another namespace puts others in their place.

    Returns:
        (the residual stream, float32 [B * T, D], or the same as a `DeferredNorm`, which `logits` and `greedy` take;
        the caches; the counters).

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it.
    """
    x, _, caches, counters = decode_layers(
        model, caches, tokens, positions, rope, page_table=page_table, counters=counters,
        implementation=implementation, deferred_norm=deferred_norm, kernels=kernels,
    )  # fmt: skip
    return x, caches, counters


def decode_layers(
    model: Llama,
    caches: list[KVCache],
    tokens: jax.Array,
    positions: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    *,
    page_table: jax.Array | None = None,
    counters: jax.Array | None = None,
    implementation: str | None = None,
    deferred_norm: bool | None = None,
    kernels: Any = pk,
) -> tuple[jax.Array | DeferredNorm, jax.Array, list[KVCache], jax.Array | None]:
    """As `decode_step`, which takes these arguments; returns the residual stream in float32 [B * T, D] besides."""
    batch, length = tokens.shape
    config = model.config
    if deferred_norm is None:
        deferred_norm = pk.resolve_implementation(implementation) != "xla"
    how = dict(implementation=implementation)
    sequence = None  # row i of sequence i: the kernels then read no index
    if length > 1:
        sequence = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), length)
    by_token = (batch, length) if length > 1 else (batch,)  # attention reads a sequence's keys once for its tokens
    lengths = (positions + 1).reshape(by_token)
    positions = positions.reshape(-1)
    with jax.named_scope("embedding"):
        x = model.embedding[...][tokens.reshape(-1)]
    stream = x.astype(jnp.float32)  # neither layers nor norms round it

    def made_for(op: str, weight) -> dict:
        """What a kernel is told of the one that takes its result: integer weights take it in fixed point."""
        bits = kernels.fixed_point_bits(op, weight, positions.shape[0]) if deferred_norm else None
        return {} if bits is None else dict(fixed_point=bits)

    def add(name: str, operand: jax.Array | FixedPointRows, weight, norm, user: str, following):
        """A projection that adds to the residual stream: what the next kernel, `user`, takes, and the stream."""
        op, options = getattr(kernels, name), dict(residual=stream, prefetch=following, **how)
        with jax.named_scope(name):
            if deferred_norm:
                options |= made_for(user, following)
                return op(operand, weight, norm=norm, **options)
            total = op(operand, weight, out_dtype=jnp.float32, **options)
        return total, total

    new = []
    weights = [(b.qkv.weight, b.out.weight, b.gate_up.weight, b.down.weight) for b in model.blocks]
    next_norms = [*(block.attention_norm[...] for block in model.blocks[1:]), model.norm[...]]
    for i, (block, cache, layer) in enumerate(zip(model.blocks, caches, config.layers, strict=True)):
        qkv, out, gate_up, down = weights[i]
        following = ("qkv", weights[i + 1][0]) if i + 1 < len(weights) else ("head", model.head_weight)
        norm = block.mlp_norm[...]
        with jax.named_scope("qkv"):
            q, cache = kernels.qkv(
                x, _norm_for(x, block.attention_norm[...]), qkv, cache, positions=positions, rope=rope,
                sequence=sequence, page_table=page_table, eps=config.eps, prefetch=out, **how,
            )  # fmt: skip
        new.append(cache)
        with jax.named_scope("attention"):
            mixed = kernels.attention(
                q.reshape(*by_token, *q.shape[1:]), cache, lengths=lengths, page_table=page_table, window=layer.window,
                counters=counters, prefetch=out, **made_for("out", out), **how,
            )  # fmt: skip
        if counters is not None:
            mixed, counters = mixed
        if not isinstance(mixed, FixedPointRows):
            mixed = mixed.reshape(q.shape)
        x, stream = add("out", mixed, out, norm, "gate_up", gate_up)
        with jax.named_scope("gate_up"):
            product = kernels.gate_up(
                x, _norm_for(x, norm), gate_up, activation=config.activation, eps=config.eps, prefetch=down,
                **made_for("down", down), **how,
            )  # fmt: skip
        x, stream = add("down", product, down, next_norms[i], *following)
    return x, stream, new, counters


def logits(
    model: Llama, x: jax.Array | DeferredNorm, implementation: str | None = None, kernels: Any = pk
) -> jax.Array:
    """The logits that follow each row of what `decode_step` returned.

    Args:
        model: its last norm and its head are used.
        x: the residual stream, [rows, D] in float32 or the model's dtype, or a `DeferredNorm` of the last norm.
        implementation, kernels: as in `decode_step`.

    Returns:
        float32 [rows, V].
    """
    return _head(model, x, kernels.head_logits, implementation)


def greedy(
    model: Llama, x: jax.Array | DeferredNorm, implementation: str | None = None, kernels: Any = pk
) -> tuple[jax.Array, jax.Array]:
    """The most likely token after each row, int32 [rows], and its logit, float32 [rows]; arguments as in `logits`."""
    return _head(model, x, kernels.head, implementation)


def with_row(rows: jax.Array, i: jax.Array, row: jax.Array) -> jax.Array:
    """`rows` with `row` at i, for a loop on the device: one small kernel.

    `rows.at[i].set(row)` would take two (XLA looks first whether i is inside), and a dynamic update of a slice alone
    becomes a copy whose address the host writes into the CUDA graph at every step.
    """
    return jnp.where(lax.broadcasted_iota(jnp.int32, rows.shape, 0) == i, row, rows)


def _norm_for(x: jax.Array | DeferredNorm, weight: jax.Array) -> jax.Array | None:
    """The norm's weight that a kernel takes with x: None where x carries it already."""
    return None if isinstance(x, DeferredNorm) else weight


def _head(model, x, op, implementation):
    with jax.named_scope("head"):
        return op(
            x, _norm_for(x, model.norm[...]), model.head_weight, eps=model.config.eps, implementation=implementation
        )
