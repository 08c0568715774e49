"""Generation on the device: prompts into the cache, then steps of decode and sampling without the host between them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import KVCache, attention_counters
from pallas_kernels.common.checks import MAX_ROWS
from tokenspeed import decode
from tokenspeed.model import Llama
from tokenspeed.sampling import RUNNING, Logprobs, SamplingState, finished, sample


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """B sequences under way; a pytree, donated from call to call.

    Attributes:
        caches: of each layer, contiguous: page i belongs to sequence i.
        counters: of attention, int32 [B, K], or None for more rows than a kernel takes.
        hidden: [B, D], the residual stream of the last token of each prompt.
        token: int32 [B], drawn last, not yet in the cache.
        position: int32 [B], where that token will stand; -1 when the sequence has ended or its row is not in use.
        step: int32 [B], how many tokens were drawn.
        max_tokens: int32 [B]. reason: int32 [B], why a sequence ended (`sampling.finished`).
        sampling: its parameters.
    """

    caches: list[KVCache]
    counters: jax.Array | None
    hidden: jax.Array
    token: jax.Array
    position: jax.Array
    step: jax.Array
    max_tokens: jax.Array
    reason: jax.Array
    sampling: SamplingState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a few steps drew: tokens int32 [steps, B], -1 where a sequence had ended, and Logprobs or None, stacked."""

    tokens: jax.Array
    logprobs: Logprobs | None


def begin(model: Llama, sampling: SamplingState, max_tokens: jax.Array, capacity: int) -> Generation:
    """Empty caches of `capacity` positions for as many sequences as `sampling` has rows."""
    rows = max_tokens.shape[0]
    c = model.config

    def all_of(value):  # an array for each field: they are donated
        return jnp.full((rows,), value, jnp.int32)

    return Generation(
        caches=[KVCache.zeros(rows, c.num_kv_heads, capacity, c.head_dim, model.dtype) for _ in range(c.num_layers)],
        counters=attention_counters(rows, c.num_kv_heads) if rows <= MAX_ROWS else None,
        hidden=jnp.zeros((rows, c.d_model), model.dtype),
        token=all_of(0),
        position=all_of(-1),
        step=all_of(0),
        max_tokens=max_tokens,
        reason=all_of(RUNNING),
        sampling=sampling,
    )


@functools.partial(jax.jit, static_argnames=("capacity", "library"), donate_argnums=1)
def prefill(
    model: Llama, state: Generation, tokens, start, lengths, rope, *, capacity: int, library: str | None = None
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
    x, caches = model.prefill(state.caches, tokens, positions, rope, capacity=capacity, library=library)
    last = lengths - 1 - start
    here = (last >= 0) & (last < length)
    found = jnp.take_along_axis(x, jnp.clip(last, 0, length - 1)[:, None, None], axis=1)[:, 0]
    return dataclasses.replace(
        state,
        caches=caches,
        hidden=jnp.where(here[:, None], found, state.hidden),
        position=jnp.where(here, lengths - 1, state.position),
    )


@functools.partial(jax.jit, static_argnames=("logprobs", "implementation"), donate_argnums=1)
def first(model: Llama, state: Generation, *, logprobs: int | None, implementation: str | None):
    """Draws the first token of each sequence, from the end of its prompt: (state, Drawn of one step)."""
    state, drawn = _draw(model, state, state.hidden, logprobs, implementation)
    return state, jax.tree.map(lambda x: x[None], drawn)


@functools.partial(jax.jit, static_argnames=("steps", "logprobs", "implementation"), donate_argnums=1)
def advance(model: Llama, state: Generation, rope, *, steps: int, logprobs: int | None, implementation: str | None):
    """`steps` steps of every sequence that has not ended: (state, Drawn of that many steps)."""

    def step(i, carry):
        state, all_drawn = carry
        x, caches, counters = decode.decode_step(
            model, state.caches, state.token[:, None], state.position[:, None], rope, counters=state.counters,
            implementation=implementation,
        )  # fmt: skip
        state, drawn = _draw(
            model, dataclasses.replace(state, caches=caches, counters=counters), x, logprobs, implementation
        )
        return state, jax.tree.map(lambda whole, one: whole.at[i].set(one), all_drawn, drawn)

    shapes = jax.eval_shape(lambda: _draw(model, state, state.hidden, logprobs, implementation)[1])
    empty = jax.tree.map(lambda s: jnp.zeros((steps, *s.shape), s.dtype), shapes)
    return lax.fori_loop(0, steps, step, (state, empty))


@functools.partial(jax.jit, donate_argnums=0)
def end(state: Generation, rows: jax.Array) -> Generation:
    """Ends the sequences where `rows`, bool [B], is true."""
    return dataclasses.replace(state, position=jnp.where(rows, -1, state.position))


def _draw(model, state, x, logprobs, implementation):
    """Draws a token of each running sequence from the residual stream [B, D] of its last one."""
    sampling, running = state.sampling, state.position >= 0
    if logprobs is None and sampling.plan.argmax:
        token, value = decode.greedy(model, x, implementation)
        sampling, found = dataclasses.replace(sampling, broken=sampling.broken | (running & ~jnp.isfinite(value))), None
    else:
        token, found, new = sample(decode.logits(model, x, implementation), sampling, state.step, logprobs=logprobs)
        counts = new.counts
        if counts is not None:
            counts = jnp.where(running[:, None], counts, sampling.counts)
        sampling = dataclasses.replace(new, counts=counts, broken=sampling.broken | (running & new.broken))
    ended, reason = finished(token, state.step, sampling.ends, state.max_tokens)
    state = dataclasses.replace(
        state,
        sampling=sampling,
        token=jnp.where(running, token, state.token),
        position=jnp.where(running & ~ended, state.position + 1, -1),
        step=state.step + running,
        reason=jnp.where(running & (reason != RUNNING), reason, state.reason),
    )
    return state, Drawn(tokens=jnp.where(running, token, -1), logprobs=found)
