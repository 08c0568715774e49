"""The decode step: a few tokens of each sequence through the fused kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import pallas_kernels as pk
from pallas_kernels import KVCache
from pallas_kernels.common import implementation as impl
from pallas_kernels.common import levers
from pallas_kernels.common.checks import MAX_ROWS
from pallas_kernels.common.weighted import weight_left
from tokenspeed.model import Llama

HALVED_ROWS = 1
"""Up to how many rows are passed on with the next norm's weight in them: the squares of more, read by every program,
cost about what a norm's launch does."""


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
    kernels: Any = pk,
) -> tuple[jax.Array | pk.Weighted, list[KVCache], jax.Array | None]:
    """Runs T tokens of each of B sequences, each of which sees the cache and those before it.

    Every (sequence, token) is a row of the kernels; more than 16 rows go through them in groups.

    Args:
        caches: of each layer; donate them. Sequence i has page i, or the pages of `page_table[i]`.
        tokens: int32 [B, T].
        positions: int32 [B, T]; -1 for a row that is not in use, which writes nothing and sees nothing.
        rope: from `Llama.rope_tables`, for as many positions as there may be.
        page_table: int32 [B, pages of a sequence], or None for contiguous caches.
        counters: from `attention_counters(B * T, K)`, for up to 16 rows; None makes them anew in each layer.
        implementation: of the kernels.
        kernels: what has them by their names; another namespace puts others in their place.

    Returns:
        (the residual stream, float32 [B * T, D] or as `Weighted`, which `logits` and `greedy` take; the caches; the
        counters).
    """
    batch, length = tokens.shape
    config, rows = model.config, batch * length
    # XLA's own step stays as it is commonly written.
    halves = rows <= HALVED_ROWS and impl.resolve(implementation) != "xla" and levers.used("weighted_norm")
    with jax.named_scope("embedding"):
        x = model.embedding[...][tokens.reshape(-1)]
    positions = positions.reshape(-1)
    groups = [slice(i, min(i + MAX_ROWS, rows)) for i in range(0, rows, MAX_ROWS)]
    sequences: list[jax.Array | None] = [None]  # row i of sequence i: the kernels then read no index
    if length > 1 or len(groups) > 1:
        sequence = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), length)
        sequences = [sequence[group] for group in groups]
    if len(groups) > 1:
        counters = None
    how = dict(implementation=implementation)

    def each(name: str, op: Callable, *operands: Sequence) -> list:
        """The op on every group of rows, under its name in a trace."""
        with jax.named_scope(name):
            return [op(*of_group) for of_group in zip(*operands, strict=True)]

    xs = [x[group] for group in groups]
    streams = [x.astype(jnp.float32) for x in xs]  # neither layers nor norms round it

    def add(name: str, op: Callable, operands: list, weight, following, norm):
        """A projection that adds to the residual stream, of each group: what the norm's user takes, the stream."""
        options = dict(norm=norm) if halves else dict(wide=True)
        options |= dict(prefetch=following) | how
        found = each(name, lambda h, stream: op(h, weight, residual=stream, **options), operands, streams)
        return ([x for x, _ in found], [stream for _, stream in found]) if halves else (found, found)

    new = []
    weights = [(b.qkv.weight, b.out.weight, b.gate_up.weight, b.down.weight) for b in model.blocks]
    next_norms = [*(block.attention_norm[...] for block in model.blocks[1:]), model.norm[...]]
    for i, (block, cache, window) in enumerate(zip(model.blocks, caches, config.windows, strict=True)):
        qkv, out, gate_up, down = weights[i]
        following = weights[i + 1][0] if i + 1 < len(weights) else model.head_weight
        queries = []
        for x, group, sequence in zip(xs, groups, sequences, strict=True):  # in turn: each writes into the cache
            with jax.named_scope("qkv"):
                q, cache = kernels.qkv(
                    x, weight_left(x, block.attention_norm[...]), qkv, cache, positions=positions[group], rope=rope,
                    sequence=sequence, page_table=page_table, eps=config.eps, prefetch=out, **how,
                )  # fmt: skip
            queries.append(q)
        new.append(cache)
        mixed = []
        for q, group, sequence in zip(queries, groups, sequences, strict=True):
            with jax.named_scope("attention"):
                found = kernels.attention(
                    q, cache, lengths=positions[group] + 1, sequence=sequence, page_table=page_table,
                    window=window, counters=counters, prefetch=out, **how,
                )  # fmt: skip
            if counters is not None:
                found, counters = found
            mixed.append(found)
        norm, act = block.mlp_norm[...], config.activation
        xs, streams = add("out", kernels.out, mixed, out, gate_up, norm)
        products = each(
            "gate_up",
            lambda x: kernels.gate_up(
                x, weight_left(x, norm), gate_up, activation=act, eps=config.eps, prefetch=down, **how
            ),
            xs,
        )
        xs, streams = add("down", kernels.down, products, down, following, next_norms[i])
    return xs[0] if len(xs) == 1 else jnp.concatenate(xs), new, counters


def logits(model: Llama, x: jax.Array | pk.Weighted, implementation: str | None = None, kernels: Any = pk) -> jax.Array:
    """float32 [rows, V] of the residual stream [rows, D], or of 1 to 16 rows with the last norm's weight in them."""
    return _in_groups(model, x, kernels.head_logits, implementation)


def greedy(
    model: Llama, x: jax.Array | pk.Weighted, implementation: str | None = None, kernels: Any = pk
) -> tuple[jax.Array, jax.Array]:
    """The most likely token of each row, int32 [rows], and its logit, float32 [rows]; rows as `logits` takes them."""
    return _in_groups(model, x, kernels.head, implementation)


def with_row(rows: jax.Array, i: jax.Array, row: jax.Array) -> jax.Array:
    """`rows` with `row` at i, for a loop on the device: one small kernel.

    `rows.at[i].set(row)` would take two (XLA looks first whether i is inside), and a dynamic update of a slice alone
    becomes a copy whose address the host writes into the CUDA graph at every step.
    """
    return jnp.where(lax.broadcasted_iota(jnp.int32, rows.shape, 0) == i, row, rows)


def _in_groups(model, x, op, implementation):
    norm, options = weight_left(x, model.norm[...]), dict(eps=model.config.eps, implementation=implementation)
    groups = [x] if norm is None else [x[i : i + MAX_ROWS] for i in range(0, x.shape[0], MAX_ROWS)]
    with jax.named_scope("head"):
        parts = [op(group, norm, model.head_weight, **options) for group in groups]
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
