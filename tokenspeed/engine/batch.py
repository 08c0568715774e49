"""The batch on the device: the pool's pages, each slot's page table, last token and way of drawing, and its programs.

A slot is a row that a sequence keeps while it runs. A program takes the slots that it works on by number, so that
sequences join and leave without anything else being moved; tokens pass from step to step on the device. What the host
tells a program travels in one array of integers.
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
from tokenspeed.models.kv_dtypes import KVDtypes
from tokenspeed.models.kv_scales import KVScales
from tokenspeed.sampling.params import MAX_LOGPROBS
from tokenspeed.sampling.sample import Logprobs, logprobs_of
from tokenspeed.sampling.state import SamplingPlan, SamplingRows, SamplingState

NOBODY = -1
"""A slot's number where a row of a program is not in use; what such a row says is not looked at."""
CHUNK_COLUMNS = "slot", "start", "tokens", "tables", "follows"
"""Of a chunk's row, before the words of `SamplingRows`, the page table and the tokens themselves: the slot, where its
tokens begin, how many they are, whether the slot's tables (`Batch.sampling`) are this sequence's, and whether the slot
had a chunk of this sequence before."""
DECODE_COLUMNS = "slot", "position", "drawn", "max_tokens", "place", "page"
"""Of a row of decode: the slot; the position where its last token will stand; how many tokens it has drawn, and how
many it may; a place of its page table and the page there, -1 where there is no new one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """S slots over one pool of pages; a pytree, donated from call to call.

    Attributes:
        caches: of each layer, the pool: pages [P, K, Z, H].
        page_table: int32 [S, pages of a sequence], -1 where there is no page.
        token: int32 [S], drawn last, not yet in the cache.
        hidden: float32 [S, D], the residual stream of the last token of each prompt.
        tables: bool [S], whether the slot's bias counts; else it is of a sequence that was there before.
        sampling: of S rows, with every table that any plan of the engine needs.
    """

    caches: list[KVCache]
    page_table: jax.Array
    token: jax.Array
    hidden: jax.Array
    tables: jax.Array
    sampling: SamplingState


def empty(
    config: ModelConfig, kv: KVDtypes, scales: KVScales, *, pages: int, page_size: int, slots: int, pages_each: int,
    plan: SamplingPlan,
) -> Batch:  # fmt: skip
    """A batch of which nothing is in use; to be compiled.

    Args:
        config: of the model. kv, scales: of the pool.
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
    size = pages, c.num_kv_heads, page_size, c.head_dim
    return Batch(
        caches=[KVCache.zeros(*size, kv.k, v_dtype=kv.v, **scales.of_layer(i)) for i in range(c.num_layers)],
        page_table=jnp.full((slots, pages_each), -1, jnp.int32),
        token=integers((slots,)),
        hidden=floats((slots, c.d_model)),
        tables=jnp.zeros((slots,), bool),
        sampling=SamplingState(
            temperature=floats((slots,)), top_k=integers((slots,)), top_p=floats((slots,)), min_p=floats((slots,)),
            presence_penalty=floats((slots,)), frequency_penalty=floats((slots,)),
            repetition_penalty=floats((slots,)), key=jnp.zeros((slots, 2), jnp.uint32), min_tokens=integers((slots,)),
            ends=jnp.full((slots, plan.ends), -1, jnp.int32), plan=plan, **tables,
        ),
    )  # fmt: skip


def write_tables(batch: Batch, slot: jax.Array, rows: SamplingRows) -> Batch:
    """The tables of a sequence that needs some into its slot, if there is such a slot; to be compiled.

    Args:
        slot: int32. rows: of one row, by the batch's plan.
    """
    placed = {
        name: getattr(batch.sampling, name).at[slot].set(getattr(rows, name)[0], mode="drop")
        for name in ("bias", "counts", "prompted")
        if getattr(batch.sampling, name) is not None
    }
    return dataclasses.replace(batch, sampling=dataclasses.replace(batch.sampling, **placed))


def chunk(weights: Weights, batch: Batch, rows: jax.Array, *arguments: Any, **options: Any) -> tuple[Batch, jax.Array]:
    """As `prefill`, and instead of the residual stream a number of no meaning, which is there when the chunk is; to be
    compiled."""
    return prefill(weights, batch, rows, *arguments, **options)[0], rows[0, 0]


def score(weights: Weights, batch: Batch, rows: jax.Array, *arguments: Any, **options: Any) -> tuple[Batch, Logprobs]:
    """As `prefill`, and how likely each token's successor is; to be compiled.

    Args:
        rows: behind the columns of `prefill`, the token that follows each of its tokens, any where there is none.

    Returns:
        (the batch, of each token the MAX_LOGPROBS most likely to follow it, and the one that does).
    """
    length = options["length"]
    batch, x = prefill(weights, batch, rows[:, :-length], *arguments, **options)
    logits = decode.logits(weights.model, x.reshape(-1, x.shape[-1]), options["implementation"])
    return batch, logprobs_of(logits, rows[:, -length:].reshape(-1), MAX_LOGPROBS)


def prefill(
    weights: Weights,
    batch: Batch,
    rows: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    *,
    length: int,
    behind: int,
    prefill_backend: str,
    implementation: str,
) -> tuple[Batch, jax.Array]:
    """The next tokens of some sequences into the cache, and how each draws into its slot.

    Args:
        rows: int32 [B, columns]: CHUNK_COLUMNS, the words of `SamplingRows`, the whole page table, `length` tokens.
        rope: from `Llama.rope_tables`.
        length: static: T, of the longest of them.
        behind: static: a bound of where any of them begins, 0 where all begin at 0.
        prefill_backend, implementation: see `Llama.prefill`.

    Returns:
        (the batch, the residual stream of the tokens [B, T, D]).
    """
    model, state = weights.model, batch.sampling
    count, pages_each = len(rows), batch.page_table.shape[1]
    columns, words, table, tokens = jnp.split(
        rows, [len(CHUNK_COLUMNS), rows.shape[1] - length - pages_each, rows.shape[1] - length], axis=1
    )
    slot, start, tokens_of, tables, follows = columns.T
    slot_or_none = _or_none(slot, batch)
    words = jax.lax.bitcast_convert_type(words, jnp.uint32)
    plain = dataclasses.replace(state.plan, bias=False, penalties=False)
    own = SamplingRows(words=words, bias=None, counts=None, prompted=None, plan=plain).state()
    placed = {
        field.name: getattr(state, field.name).at[slot_or_none].set(value, mode="drop")
        for field in dataclasses.fields(SamplingState)
        if field.name != "plan" and (value := getattr(own, field.name)) is not None
    }
    place = jnp.arange(length, dtype=jnp.int32)
    positions = jnp.where(place < tokens_of[:, None], start[:, None] + place, -1)
    if takes_decode_kernels(count, length, implementation):
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
    if batch.caches[0].k_scale is not None or batch.caches[0].v_scale is not None:
        # Keys and values in 8 bits hold no NaN by which the last token would see that another one is not finite.
        finite = (jnp.isfinite(x).all(axis=2) | (positions < 0)).all(axis=1)
        finite &= (follows == 0) | jnp.isfinite(batch.hidden[jnp.maximum(slot, 0)]).all(axis=1)
        last = jnp.where(finite[:, None], last, jnp.nan)
    after = dataclasses.replace(
        batch,
        caches=caches,
        hidden=batch.hidden.at[slot_or_none].set(last, mode="drop"),
        page_table=batch.page_table.at[slot_or_none].set(table, mode="drop"),
        tables=batch.tables.at[slot_or_none].set(tables != 0, mode="drop"),
        sampling=dataclasses.replace(state, **placed),
    )
    return after, x


def takes_decode_kernels(count: int, length: int, implementation: str) -> bool:
    """Whether a chunk of that many sequences goes through the kernels of decode: it is weights that take the time."""
    return count * length <= generation.FEW_TOKENS and resolve_implementation(implementation) != "xla"


def first(
    weights: Weights, batch: Batch, rows: jax.Array, *, plan: SamplingPlan, logprobs: int | None, implementation: str
) -> tuple[Batch, Drawn]:
    """Draws the token that follows each prompt; `Drawn` of one step. To be compiled; arguments as in `steps`."""
    batch, state, _ = _of_rows(batch, rows, plan)
    state, drawn = generation.draw_first(weights, state, logprobs=logprobs, implementation=implementation)
    return _back(batch, rows, state), drawn


def steps(
    weights: Weights,
    batch: Batch,
    rows: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    *,
    count: int,
    capacity: int,
    plan: SamplingPlan,
    logprobs: int | None,
    implementation: str,
) -> tuple[Batch, Drawn]:
    """`count` steps of decode of some sequences; to be compiled.

    Args:
        rows: int32 [B, 6], DECODE_COLUMNS.
        rope: from `Llama.rope_tables`. count: static.
        capacity: static: a bound of the positions; XLA's attention takes as long as that.
        plan: static: that covers these rows. logprobs, implementation: as in `generation.decode_steps`.
    """
    batch, state, table = _of_rows(batch, rows, plan)
    state, drawn = generation.decode_steps(
        weights, state, rope, steps=count, logprobs=logprobs, implementation=implementation,
        page_table=table[:, : -(-capacity // batch.caches[0].page_size)],
    )  # fmt: skip
    return _back(batch, rows, state), drawn


def _of_rows(batch: Batch, rows: jax.Array, plan: SamplingPlan) -> tuple[Batch, Generation, jax.Array]:
    """(the batch with the new pages, the rows' sequences, their page tables)."""
    slot, position, drawn, most, place, page = rows.T
    at, used = jnp.maximum(slot, 0), slot != NOBODY
    new = jnp.where(page >= 0, _or_none(slot, batch), batch.token.shape[0])
    page_table = batch.page_table.at[new, place].set(page, mode="drop")
    wanted = dict(bias=plan.bias, counts=plan.penalties, prompted=plan.penalties)
    fields: dict[str, Any] = {
        field.name: getattr(batch.sampling, field.name)[at] if wanted.get(field.name, True) else None
        for field in dataclasses.fields(SamplingState)
        if field.name != "plan"
    }
    if plan.bias:
        fields["bias"] = jnp.where(batch.tables[at][:, None], fields["bias"], 0.0)
    state = Generation(
        caches=batch.caches,
        counters=attention_counters(len(rows), batch.caches[0].k.shape[1]),
        hidden=batch.hidden[at],
        token=batch.token[at],
        position=jnp.where(used, position, -1),
        step=drawn,
        max_tokens=most,
        sampling=SamplingState(**fields, plan=plan),
    )
    return dataclasses.replace(batch, page_table=page_table), state, page_table[at]


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
