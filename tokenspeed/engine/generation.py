"""Generation on the device: prompts into the cache, then steps of decode and sampling without the host between them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import pallas_kernels as pk
from pallas_kernels import KVCache, attention_counters
from tokenspeed.engine import decode
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.decoder import Llama
from tokenspeed.sampling.sample import RUNNING, Logprobs, finished, sample
from tokenspeed.sampling.state import SamplingRows, SamplingState

FEW_TOKENS = 256
"""Of prompts: up to so many, a pass over the weights takes about as long whatever their number."""
ENDED, BROKEN = -1, -2
"""In the place of a token: the sequence had ended, or its logits were not finite, which ends it."""

LAUNCHED_ONE_BY_ONE = {"xla_gpu_enable_command_buffer": ""}
"""XLA's options for what runs once for a prompt. Its buffers are elsewhere each time, and XLA would record its hundreds
of launches into a CUDA graph anew, library calls by capturing them, before the first one starts."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """A model as a list of its arrays: Flax walks a model in Python at every call, a list passes at once."""

    arrays: list[jax.Array]
    tree: Any = dataclasses.field(metadata=dict(static=True))

    @classmethod
    def of(cls, model: Llama) -> "Weights":
        return cls(*jax.tree.flatten(model))

    @property
    def model(self) -> Llama:
        """The model; under jit its arrays are traced."""
        return jax.tree.unflatten(self.tree, self.arrays)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """B sequences under way; a pytree, donated from call to call.

    Attributes:
        caches: of each layer, contiguous: page i belongs to sequence i. (Or pools of pages, where steps get a table.)
        counters: of attention, int32 [B, K].
        hidden: float32 [B, D], the residual stream of the last token of each prompt.
        token: int32 [B], drawn last, not yet in the cache; of no meaning once the sequence has ended.
        position: int32 [B], where that token will stand; -1 when the sequence has ended or its row is not in use.
        step: int32 [B], how many tokens were drawn.
        max_tokens: int32 [B], how many tokens each may draw.
        sampling: how each draws them.
    """

    caches: list[KVCache]
    counters: jax.Array
    hidden: jax.Array
    token: jax.Array
    position: jax.Array
    step: jax.Array
    max_tokens: jax.Array
    sampling: SamplingState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a few steps drew. Of the host: no later call is given these arrays.

    Attributes:
        tokens: int32 [steps, B]; ENDED or BROKEN where there is none.
        reason: int32 [B], why a sequence ended in these steps (`sampling.finished`), RUNNING if it did not.
        logprobs: of the tokens, stacked, or None.
    """

    tokens: jax.Array
    reason: jax.Array
    logprobs: Logprobs | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """What is known of B sequences before any prompt is in the cache; of the host, to travel with a call.

    Attributes:
        sampling: how each draws its tokens. max_tokens: int32 [B], how many each may draw.
    """

    sampling: SamplingState | SamplingRows
    max_tokens: jax.Array | np.ndarray

    def begin(self, caches: list[KVCache], config: ModelConfig) -> Generation:
        """The state before any prompt; to be called under jit. Caches may hold anything: no slot is read unwritten."""
        rows = self.max_tokens.shape[0]
        sampling = self.sampling.state() if isinstance(self.sampling, SamplingRows) else self.sampling
        return Generation(
            caches=caches,
            counters=attention_counters(rows, config.num_kv_heads),
            hidden=jnp.zeros((rows, config.d_model), jnp.float32),
            token=jnp.zeros((rows,), jnp.int32),
            position=jnp.full((rows,), -1, jnp.int32),
            step=jnp.zeros((rows,), jnp.int32),
            max_tokens=jnp.asarray(self.max_tokens),
            sampling=sampling,
        )


@functools.partial(
    jax.jit, static_argnames=("config", "dtype", "rows", "capacity"), compiler_options=LAUNCHED_ONE_BY_ONE
)
def empty_caches(*, config: ModelConfig, dtype: Any, rows: int, capacity: int) -> list[KVCache]:
    """Of each layer, by one call: a call for each takes the host milliseconds."""
    c = config
    return [KVCache.zeros(rows, c.num_kv_heads, capacity, c.head_dim, dtype) for _ in range(c.num_layers)]


@functools.partial(
    jax.jit,
    static_argnames=("capacity", "prefill_backend", "implementation"),
    donate_argnums=1,
    compiler_options=LAUNCHED_ONE_BY_ONE,
)
def prefill(
    weights: Weights,
    state: Generation | list[KVCache],
    tokens: jax.Array,
    start: jax.Array | None,
    lengths: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    rows: Rows | None = None,
    *,
    capacity: int,
    prefill_backend: str = "xla",
    implementation: str | None = "xla",
) -> Generation:
    """Puts the next T tokens of every prompt into the cache.

    Up to `FEW_TOKENS` of all prompts together go through the kernels of decode, since it is weights that take the time.

    Args:
        weights: of the model.
        state: donated; where nothing is in the cache yet, the caches of each layer alone, and `rows` besides: a call
            of its own that made a state of them would be a wait of the host's before the first token.
        tokens: int32 [B, T], those of positions start to start + T.
        start: int32, the same for all sequences, or None for 0, which is less work for 'cudnn'.
        lengths: int32 [B], of the whole prompts; 0 for a row not in use.
        rope: from `Llama.rope_tables`. rows: of the state that begins here, else None.
        capacity: a static bound of start + T.
        prefill_backend: see `Llama.prefill`. implementation: of the kernels.
    """
    batch, length = tokens.shape
    begin = 0 if start is None else start
    places = begin + jnp.arange(length, dtype=jnp.int32)
    positions = jnp.where(places[None] < lengths[:, None], places[None], -1)
    model = weights.model
    if rows is not None:
        state = rows.begin(state, model.config)
    if batch * length <= FEW_TOKENS and pk.resolve_implementation(implementation) != "xla":
        counters = attention_counters(batch, model.config.num_kv_heads, length)
        _, x, caches, _ = decode.decode_layers(
            model, state.caches, tokens, positions, rope, counters=counters, implementation=implementation
        )
        x = x.reshape(batch, length, -1)
    else:
        # A row without tokens here has nothing to see either.
        starts = None if start is None else jnp.where(start < lengths, start, 0)
        x, caches = model.prefill(
            state.caches, tokens, positions, rope, capacity=capacity, start=starts, prefill_backend=prefill_backend,
            implementation=implementation,
        )  # fmt: skip
    last = lengths - 1 - begin
    here = (last >= 0) & (last < length)
    found = jnp.take_along_axis(x, jnp.clip(last, 0, length - 1)[:, None, None], axis=1)[:, 0]
    return dataclasses.replace(
        state,
        caches=caches,
        hidden=jnp.where(here[:, None], found.astype(jnp.float32), state.hidden),
        position=jnp.where(here, lengths - 1, state.position),
    )


def draw_first(
    weights: Weights, state: Generation, *, logprobs: int | None, implementation: str | None
) -> tuple[Generation, Drawn]:
    """Draws the first token of each sequence, from the end of its prompt; `Drawn` of one step. To be compiled: `first`.

    Args:
        weights: of the model. state: as prefill left it. logprobs: how many of the most likely tokens to report, see
            `sample`. implementation: of the kernels.
    """
    token, found, sampling = _draw(
        weights.model, state.sampling, state.hidden, state.step, state.position >= 0, logprobs, implementation
    )
    return _after(dataclasses.replace(state, sampling=sampling), token[None], jax.tree.map(lambda x: x[None], found))


first = jax.jit(
    draw_first,
    static_argnames=("logprobs", "implementation"),
    donate_argnums=1,
    compiler_options=LAUNCHED_ONE_BY_ONE,
)
"""`draw_first`, compiled; the state is donated."""


def decode_steps(
    weights: Weights,
    state: Generation,
    rope: tuple[jax.Array, jax.Array],
    *,
    steps: int,
    logprobs: int | None,
    implementation: str | None,
    page_table: jax.Array | None = None,
    deferred_norm: bool | None = None,
    kernels: Any = pk,
) -> tuple[Generation, Drawn]:
    """`steps` steps of every sequence that has not ended; `Drawn` of that many steps. To be compiled: `advance`.

    What a step passes to the next is one array of tokens, and all else is worked out from it: whether a sequence goes
    on, where it stands, and, behind the loop, why it ended. Each array more would be a launch more at every step.

    Args:
        weights: of the model. state: as `first` or this left it. rope: from `Llama.rope_tables`.
        steps: how many. logprobs: as in `first`.
        page_table: int32 [B, pages of a sequence], where the caches are pools of pages; None for contiguous ones.
        implementation, deferred_norm, kernels: as in `decode.decode_step`.
    """
    model = weights.model

    def step(i, carry):
        caches, counters, sampling, tokens, all_found = carry
        last = tokens[i]
        drawn = state.step + i  # by those that have not ended
        ended, _ = finished(last, drawn - 1, sampling.ends, state.max_tokens)
        position = jnp.where((last >= 0) & ~ended, state.position + i, -1)
        with jax.named_scope("decode_step"):
            x, caches, counters = decode.decode_step(
                model, caches, last[:, None], position[:, None], rope, page_table=page_table, counters=counters,
                implementation=implementation, deferred_norm=deferred_norm, kernels=kernels,
            )  # fmt: skip
        token, found, sampling = _draw(model, sampling, x, drawn, position >= 0, logprobs, implementation, kernels)
        tokens = decode.with_row(tokens, i + 1, token)
        return caches, counters, sampling, tokens, jax.tree.map(lambda a, b: decode.with_row(a, i, b), all_found, found)

    running = state.position >= 0
    before = jnp.where(running, state.token, ENDED)
    tokens = jnp.concatenate([before[None], jnp.full((steps, *before.shape), ENDED, jnp.int32)])
    shapes = jax.eval_shape(
        lambda: _draw(model, state.sampling, state.hidden, state.step, running, logprobs, implementation)[1]
    )
    nothing = jax.tree.map(lambda s: jnp.zeros((steps, *s.shape), s.dtype), shapes)
    carry = state.caches, state.counters, state.sampling, tokens, nothing
    caches, counters, sampling, tokens, found = lax.fori_loop(0, steps, step, carry)
    return _after(dataclasses.replace(state, caches=caches, counters=counters, sampling=sampling), tokens[1:], found)


advance = jax.jit(
    decode_steps, static_argnames=("steps", "logprobs", "implementation", "deferred_norm", "kernels"), donate_argnums=1
)
"""`decode_steps`, compiled; the state is donated."""


@functools.partial(jax.jit, donate_argnums=0)
def end(state: Generation, rows: jax.Array) -> Generation:
    """Ends the sequences where `rows`, bool [B], is true."""
    return dataclasses.replace(state, position=jnp.where(rows, -1, state.position))


def _draw(model, sampling, x, step, running, logprobs, implementation, kernels=pk):
    """(int32 [B], Logprobs or None, sampling): a token of each running sequence from the residual stream [B, D]."""
    with jax.named_scope("draw"):
        if logprobs is None and sampling.plan.argmax:
            token, value = decode.greedy(model, x, implementation, kernels)
            found, finite = None, jnp.isfinite(value)
        else:
            logits = decode.logits(model, x, implementation, kernels)
            token, finite, found, new = sample(logits, sampling, step, logprobs=logprobs)
            if new.counts is not None:
                counts = jnp.where(running[:, None], new.counts, sampling.counts)
                sampling = dataclasses.replace(sampling, counts=counts)
        return jnp.where(running, jnp.where(finite, token, BROKEN), ENDED), found, sampling


def _after(state, tokens, logprobs):
    """(the state after these tokens [steps, B], Drawn)."""
    steps = tokens.shape[0]
    count = (tokens >= 0).sum(axis=0, dtype=jnp.int32)
    last = jnp.take_along_axis(tokens, jnp.maximum(count - 1, 0)[None], axis=0)[0]
    ended, reason = finished(last, state.step + count - 1, state.sampling.ends, state.max_tokens)
    after = dataclasses.replace(
        state,
        token=last,
        position=jnp.where((tokens[-1] >= 0) & ~ended, state.position + steps, -1),
        step=state.step + count,
    )
    return after, Drawn(tokens=tokens, reason=jnp.where(count > 0, reason, RUNNING), logprobs=logprobs)
