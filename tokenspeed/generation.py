"""Generation on the device: prompts into the cache, then steps of decode and sampling without the host between them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import KVCache, attention_counters
from pallas_kernels.common.checks import MAX_ROWS
from tokenspeed import decode
from tokenspeed.config import ModelConfig
from tokenspeed.model import Llama
from tokenspeed.sampling import RUNNING, Logprobs, SamplingState, finished, sample

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
        caches: of each layer, contiguous: page i belongs to sequence i.
        counters: of attention, int32 [B, K], or None for more rows than a kernel takes.
        hidden: [B, D], the residual stream of the last token of each prompt.
        token: int32 [B], drawn last, not yet in the cache; of no meaning once the sequence has ended.
        position: int32 [B], where that token will stand; -1 when the sequence has ended or its row is not in use.
        step: int32 [B], how many tokens were drawn.
        max_tokens: int32 [B].
        sampling: its parameters.
    """

    caches: list[KVCache]
    counters: jax.Array | None
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


def begin(
    config: ModelConfig, dtype: Any, sampling: SamplingState, max_tokens: jax.Array, *, capacity: int
) -> Generation:
    """Empty caches of `capacity` positions for as many sequences as `sampling` has rows."""
    empty = _empty(config, dtype, rows=max_tokens.shape[0], capacity=capacity)
    return Generation(**empty, max_tokens=max_tokens, sampling=sampling)


@functools.partial(
    jax.jit, static_argnames=("config", "dtype", "rows", "capacity"), compiler_options=LAUNCHED_ONE_BY_ONE
)
def _empty(config, dtype, *, rows, capacity):
    """All that `begin` makes, by one call: a call for each layer's caches takes the host milliseconds."""
    c = config
    return dict(
        caches=[KVCache.zeros(rows, c.num_kv_heads, capacity, c.head_dim, dtype) for _ in range(c.num_layers)],
        counters=attention_counters(rows, c.num_kv_heads) if rows <= MAX_ROWS else None,
        hidden=jnp.zeros((rows, c.d_model), dtype),
        token=jnp.zeros((rows,), jnp.int32),
        position=jnp.full((rows,), -1, jnp.int32),
        step=jnp.zeros((rows,), jnp.int32),
    )


@functools.partial(
    jax.jit, static_argnames=("capacity", "library"), donate_argnums=1, compiler_options=LAUNCHED_ONE_BY_ONE
)
def prefill(
    weights: Weights, state: Generation, tokens, start, lengths, rope, *, capacity: int, library: str | None = None
) -> Generation:
    """Puts the next T tokens of every prompt into the cache.

    Args:
        tokens: int32 [B, T], those of positions start to start + T.
        start: int32, the same for all sequences. lengths: int32 [B], of the whole prompts; 0 for a row not in use.
        capacity: a static bound of start + T.
        library: for the attention of tokens that begin at 0, see `Llama.prefill`.
    """
    length = tokens.shape[1]
    places = start + jnp.arange(length, dtype=jnp.int32)
    positions = jnp.where(places[None] < lengths[:, None], places[None], -1)
    x, caches = weights.model.prefill(state.caches, tokens, positions, rope, capacity=capacity, library=library)
    last = lengths - 1 - start
    here = (last >= 0) & (last < length)
    found = jnp.take_along_axis(x, jnp.clip(last, 0, length - 1)[:, None, None], axis=1)[:, 0]
    return dataclasses.replace(
        state,
        caches=caches,
        hidden=jnp.where(here[:, None], found, state.hidden),
        position=jnp.where(here, lengths - 1, state.position),
    )


@functools.partial(
    jax.jit, static_argnames=("logprobs", "implementation"), donate_argnums=1, compiler_options=LAUNCHED_ONE_BY_ONE
)
def first(weights: Weights, state: Generation, *, logprobs: int | None, implementation: str | None):
    """Draws the first token of each sequence, from the end of its prompt: (state, Drawn of one step)."""
    token, found, sampling = _draw(
        weights.model, state.sampling, state.hidden, state.step, state.position >= 0, logprobs, implementation
    )
    return _after(dataclasses.replace(state, sampling=sampling), token[None], jax.tree.map(lambda x: x[None], found))


@functools.partial(jax.jit, static_argnames=("steps", "logprobs", "implementation"), donate_argnums=1)
def advance(weights: Weights, state: Generation, rope, *, steps: int, logprobs: int | None, implementation: str | None):
    """`steps` steps of every sequence that has not ended: (state, Drawn of that many steps).

    What a step passes to the next is one array of tokens, and all else is worked out from it: whether a sequence goes
    on, where it stands, and, behind the loop, why it ended. Each array more would be a launch more at every step.
    """
    model = weights.model

    def step(i, carry):
        caches, counters, sampling, tokens, all_found = carry
        last = tokens[i]
        drawn = state.step + i  # by those that have not ended
        ended, _ = finished(last, drawn - 1, sampling.ends, state.max_tokens)
        position = jnp.where((last >= 0) & ~ended, state.position + i, -1)
        x, caches, counters = decode.decode_step(
            model, caches, last[:, None], position[:, None], rope, counters=counters, implementation=implementation
        )
        token, found, sampling = _draw(model, sampling, x, drawn, position >= 0, logprobs, implementation)
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


@functools.partial(jax.jit, donate_argnums=0)
def end(state: Generation, rows: jax.Array) -> Generation:
    """Ends the sequences where `rows`, bool [B], is true."""
    return dataclasses.replace(state, position=jnp.where(rows, -1, state.position))


def _draw(model, sampling, x, step, running, logprobs, implementation):
    """(int32 [B], Logprobs or None, sampling): a token of each running sequence from the residual stream [B, D]."""
    if logprobs is None and sampling.plan.argmax:
        token, value = decode.greedy(model, x, implementation)
        found, sound = None, jnp.isfinite(value)
    else:
        token, found, new = sample(decode.logits(model, x, implementation), sampling, step, logprobs=logprobs)
        sound = ~new.broken  # `sampling.broken` stays as it was made: the tokens say it
        if new.counts is not None:
            counts = jnp.where(running[:, None], new.counts, sampling.counts)
            sampling = dataclasses.replace(sampling, counts=counts)
    return jnp.where(running, jnp.where(sound, token, BROKEN), ENDED), found, sampling


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
