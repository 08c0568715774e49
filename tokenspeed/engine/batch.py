"""The batch on the device: the pool's pages, each slot's page table, last token and way of drawing, and its programs.

A slot is a row that a sequence keeps while it runs. A program takes the slots that it works on by number, so that
sequences join and leave without anything else being moved; tokens pass from step to step on the device.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import KVCache, attention_counters, resolve_implementation
from tokenspeed.engine import decode, generation
from tokenspeed.engine.generation import Drawn, Generation, Weights
from tokenspeed.models.config import ModelConfig
from tokenspeed.sampling.state import SamplingPlan, SamplingRows, SamplingState

NOBODY = -1
"""A slot's number where a row of a program is not in use."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """S slots over one pool of pages; a pytree, donated from call to call.

    Attributes:
        caches: of each layer, the pool: pages [P, K, Z, H].
        page_table: int32 [S, pages of a sequence], -1 where there is no page.
        token: int32 [S], drawn last, not yet in the cache.
        hidden: float32 [S, D], the residual stream of the last token of each prompt.
        sampling: of S rows, with every table that any plan of the engine needs.
    """

    caches: list[KVCache]
    page_table: jax.Array
    token: jax.Array
    hidden: jax.Array
    sampling: SamplingState


def empty(
    config: ModelConfig, dtype: Any, *, pages: int, page_size: int, slots: int, pages_each: int, plan: SamplingPlan
) -> Batch:
    """A batch of which nothing is in use.

    Args:
        config: of the model. dtype: of the pool.
        pages, page_size: of the pool. slots: S. pages_each: of the longest sequence.
        plan: that covers the plans of all calls.
    """
    c, vocabulary = config, config.vocab_size
    floats, integers = (functools.partial(jnp.zeros, dtype=dtype) for dtype in (jnp.float32, jnp.int32))
    tables = dict(
        bias=floats((slots, vocabulary)) if plan.bias else None,
        counts=integers((slots, vocabulary)) if plan.penalties else None,
        prompted=jnp.zeros((slots, vocabulary), bool) if plan.penalties else None,
    )
    return Batch(
        caches=[KVCache.zeros(pages, c.num_kv_heads, page_size, c.head_dim, dtype) for _ in range(c.num_layers)],
        page_table=jnp.full((slots, pages_each), -1, jnp.int32),
        token=integers((slots,)),
        hidden=floats((slots, c.d_model)),
        sampling=SamplingState(
            temperature=floats((slots,)), top_k=integers((slots,)), top_p=floats((slots,)), min_p=floats((slots,)),
            presence_penalty=floats((slots,)), frequency_penalty=floats((slots,)),
            repetition_penalty=floats((slots,)), key=jnp.zeros((slots, 2), jnp.uint32), min_tokens=integers((slots,)),
            ends=jnp.full((slots, plan.ends), -1, jnp.int32), plan=plan, **tables,
        ),
    )  # fmt: skip


def seat(batch: Batch, slot: jax.Array, rows: SamplingRows) -> Batch:
    """A new sequence in a slot: how it draws; to be compiled.

    Args:
        slot: int32. rows: of one row, by the batch's plan.
    """
    own, state = rows.state(), batch.sampling
    placed = {
        field.name: getattr(state, field.name).at[slot].set(getattr(own, field.name)[0])
        for field in dataclasses.fields(SamplingState)
        if field.name != "plan" and getattr(state, field.name) is not None
    }
    return dataclasses.replace(
        batch,
        page_table=batch.page_table.at[slot].set(-1),
        sampling=dataclasses.replace(state, **placed),
    )


def turn(batch: Batch, entries: jax.Array) -> Batch:
    """Pages that sequences were given; to be compiled.

    Args:
        entries: int32 [U, 3], the slot, the place in its table, and the page; a slot of `NOBODY` is no entry.
    """
    slot, place, page = entries.T
    slot = jnp.where(slot == NOBODY, batch.page_table.shape[0], slot)
    return dataclasses.replace(batch, page_table=batch.page_table.at[slot, place].set(page, mode="drop"))


def chunk(
    weights: Weights,
    batch: Batch,
    tokens: jax.Array,
    rows: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    *,
    behind: int,
    prefill_backend: str,
    implementation: str,
) -> Batch:
    """The next tokens of some prompts into the cache; to be compiled.

    Args:
        tokens: int32 [B, T]. rows: int32 [B, 3], the slot, where its tokens begin, and how many they are.
        rope: from `Llama.rope_tables`.
        behind: static: a bound of where any of them begins, 0 where all begin at 0.
        prefill_backend, implementation: see `generation.prefill`.
    """
    (count, length), model = tokens.shape, weights.model
    slot, start, tokens_of = rows.T
    place = jnp.arange(length, dtype=jnp.int32)
    positions = jnp.where(place < tokens_of[:, None], start[:, None] + place, -1)
    table = batch.page_table[jnp.maximum(slot, 0)]
    if count * length <= generation.FEW_TOKENS and resolve_implementation(implementation) != "xla":
        counters = attention_counters(count, model.config.num_kv_heads, length)
        _, x, caches, _ = decode.decode_layers(
            model, batch.caches, tokens, positions, rope, page_table=table, counters=counters,
            implementation=implementation,
        )  # fmt: skip
        x = x.reshape(count, length, -1)
    else:
        x, caches = model.prefill(
            batch.caches, tokens, positions, rope, capacity=behind + length, start=start if behind else None,
            page_table=table, prefill_backend=prefill_backend, implementation=implementation,
        )  # fmt: skip
    last = jnp.take_along_axis(x, jnp.maximum(tokens_of - 1, 0)[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    return dataclasses.replace(
        batch, caches=caches, hidden=batch.hidden.at[_or_none(slot, batch)].set(last, mode="drop")
    )


def first(
    weights: Weights, batch: Batch, rows: jax.Array, *, plan: SamplingPlan, logprobs: int | None, implementation: str
) -> tuple[Batch, Drawn]:
    """Draws the token that follows each prompt; `Drawn` of one step. To be compiled; arguments as in `steps`."""
    state = _of_rows(batch, rows, plan)
    state, drawn = generation.draw_first(weights, state, logprobs=logprobs, implementation=implementation)
    return _back(batch, rows, state), drawn


def steps(
    weights: Weights,
    batch: Batch,
    rows: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    *,
    count: int,
    plan: SamplingPlan,
    logprobs: int | None,
    implementation: str,
) -> tuple[Batch, Drawn]:
    """`count` steps of decode of some sequences; to be compiled.

    Args:
        rows: int32 [B, 4]: the slot, `NOBODY` for a row that is not in use; the position where its last token will
            stand; how many tokens it has drawn; how many it may.
        plan: static: that covers these rows. logprobs, implementation: as in `generation.decode_steps`.
    """
    state = _of_rows(batch, rows, plan)
    table = batch.page_table[jnp.maximum(rows[:, 0], 0)]
    state, drawn = generation.decode_steps(
        weights, state, rope, steps=count, logprobs=logprobs, implementation=implementation, page_table=table
    )
    return _back(batch, rows, state), drawn


def _of_rows(batch: Batch, rows: jax.Array, plan: SamplingPlan) -> Generation:
    slot, position, step, most = rows.T
    at, used = jnp.maximum(slot, 0), slot != NOBODY
    wanted = dict(bias=plan.bias, counts=plan.penalties, prompted=plan.penalties)
    fields: dict[str, Any] = {
        field.name: getattr(batch.sampling, field.name)[at] if wanted.get(field.name, True) else None
        for field in dataclasses.fields(SamplingState)
        if field.name != "plan"
    }
    return Generation(
        caches=batch.caches,
        counters=attention_counters(len(rows), batch.caches[0].k.shape[1]),
        hidden=batch.hidden[at],
        token=batch.token[at],
        position=jnp.where(used, position, -1),
        step=step,
        max_tokens=most,
        sampling=SamplingState(**fields, plan=plan),
    )


def _back(batch: Batch, rows: jax.Array, state: Generation) -> Batch:
    """The batch after these rows' steps."""
    slot = _or_none(rows[:, 0], batch)
    sampling = batch.sampling
    if sampling.counts is not None and state.sampling.counts is not None:
        counts = sampling.counts.at[slot].set(state.sampling.counts, mode="drop")
        sampling = dataclasses.replace(sampling, counts=counts)
    return dataclasses.replace(
        batch, caches=state.caches, token=batch.token.at[slot].set(state.token, mode="drop"), sampling=sampling
    )


def _or_none(slot: jax.Array, batch: Batch) -> jax.Array:
    """The slots, and one past the last for `NOBODY`, which a write drops."""
    return jnp.where(slot == NOBODY, batch.token.shape[0], slot)
