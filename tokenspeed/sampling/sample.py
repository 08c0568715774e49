"""From logits to tokens, on the device: every row of a batch by its own parameters.

The stages, in vLLM's order: bias and allowed ids, ids that may not end the row yet, penalties, temperature, min-p,
top-k, top-p, draw. A `SamplingPlan`, static under jit, says which of them any row needs; the others are not compiled,
so that greedy rows without penalties cost one argmax. A row's token depends on its own logits, parameters and step
alone, not on its place, its neighbours, or the stages that they ask for: noise belongs to (key, step, token id), a
stage is exact for a row that does not use it, and the masses of top-p are summed as integers, in which order does
not round (`pallas_kernels.top_k_top_p`).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import top_k_top_p
from tokenspeed.sampling.state import SamplingState, fold_in

RUNNING, STOPPED, LENGTH = 0, 1, 2
"""Reason codes of `finished`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Logprobs:
    """log_softmax (natural logarithm) of the logits as the model gave them, before any stage.

    Attributes:
        sampled: float32 [B], of the token that was drawn. rank: int32 [B], its place among all, from 1.
        top_ids, top: int32 and float32 [B, n], the n most likely, best first. Of equals the lowest id comes first.
    """

    sampled: jax.Array
    rank: jax.Array
    top_ids: jax.Array
    top: jax.Array


class Sampled(NamedTuple):
    """What `sample` drew.

    Attributes:
        tokens: int32 [B], always in [0, V).
        finite: bool [B], False where the row had no finite logit to choose: NaN or +inf came from the model, or
            everything was masked. Its token means nothing: fail the request.
        logprobs: or None, where none were asked for.
        state: with the counts of generated tokens brought up to date.
    """

    tokens: jax.Array
    finite: jax.Array
    logprobs: Logprobs | None
    state: SamplingState


def sample(
    logits: jax.Array,
    state: SamplingState,
    step: jax.Array,
    *,
    logprobs: int | None = None,
    implementation: str = "xla",
) -> Sampled:
    """Draws the next token of each row. Pure, of static shapes; to be called under jit.

    Args:
        logits: float32 [B, V], as the model gives them.
        state: of B rows and vocabulary V.
        step: int32 [B], how many tokens the row has generated before this one. It chooses the noise, so a row draws
            the same tokens however its steps are divided among calls.
        logprobs: static: how many of the most likely tokens to report; 0 reports the drawn token alone, None nothing.
        implementation: static: of top-k and top-p, 'xla', 'triton' or 'interpret'; all keep the same.

    Raises:
        ValueError, TypeError: a shape or dtype is wrong.

    The draw is Gumbel-max (Gumbel 1954): the largest of logit + noise has the probabilities of softmax. Of equal
    logits the lowest id comes first, in greedy rows and at the edge of top-k and top-p alike. NaN that is not masked
    counts as the largest, as in `jnp.argmax`; a row with nothing left gives id 0; neither is `finite`.
    """
    _check(logits, state, step, logprobs)
    scores = processed = process(logits, state, step)
    if state.plan.random:
        greedy = (state.temperature == 0)[:, None]
        scaled = processed / jnp.where(greedy, 1.0, state.temperature[:, None])
        noisy = keep(scaled, state, implementation) + gumbel(state.key, step, logits.shape[1])
        scores = jnp.where(greedy, processed, noisy)
    tokens = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    if state.counts is not None:
        state = dataclasses.replace(state, counts=state.counts.at[jnp.arange(len(tokens)), tokens].add(1))
    return Sampled(
        tokens=tokens,
        # The largest of a row says it all: NaN wins argmax, and -inf only if there is nothing else.
        finite=jnp.isfinite(_at(scores, tokens)),
        logprobs=None if logprobs is None else logprobs_of(logits, tokens, logprobs),
        state=state,
    )


def finished(tokens: jax.Array, step: jax.Array, ends: jax.Array, max_tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether rows end with these tokens, and why.

    Args:
        tokens: int32 [B], just drawn. step: int32 [B], as in `sample`: how many there were before.
        ends: int32 [B, E], the ids that end each row, padded with -1 (`SamplingState.ends`).
        max_tokens: int32 [B], how many tokens a row may generate.

    Returns:
        (bool [B], int32 [B]: RUNNING 0, STOPPED 1 by a token, LENGTH 2). A token that ends the row goes before length.
    """
    # Column by column: a reduction, small as it is, would be a launch of its own at every step.
    stopped = functools.reduce(jnp.logical_or, (tokens == ends[:, i] for i in range(ends.shape[1])))
    reason = jnp.where(stopped, STOPPED, jnp.where(step + 1 >= max_tokens, LENGTH, RUNNING)).astype(jnp.int32)
    return reason != RUNNING, reason


def _check(logits, state, step, logprobs):
    shape = state.key.shape[0], *logits.shape[1:2]
    _expect("logits", logits, (*shape, "V")[:2], jnp.float32)
    for name in ("bias", "counts", "prompted"):
        if getattr(state, name) is not None:
            _expect(f"state.{name}", getattr(state, name), shape)
    _expect("step", step, shape[:1], jnp.int32)
    if logprobs is not None and not 0 <= logprobs <= shape[1]:
        raise ValueError(f"logprobs: expected None or 0 to {shape[1]}, got {logprobs}")


def _expect(name, array, shape, dtype=None):
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape [{', '.join(map(str, shape))}], got {list(array.shape)}")
    if dtype is not None and array.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {jnp.dtype(dtype).name}, got {array.dtype}")


def process(logits, state, step):
    """The stages that greedy rows have too: [B, V] -> [B, V]."""
    batch, vocabulary = logits.shape
    if state.bias is not None:
        # Not a sum alone: -inf + NaN would be NaN, and would win.
        logits = jnp.where(state.bias == -jnp.inf, -jnp.inf, logits + state.bias)
    if state.plan.min_tokens:
        masked = (state.ends >= 0) & (step < state.min_tokens)[:, None]
        ids = jnp.where(masked, state.ends, vocabulary)
        logits = logits.at[jnp.arange(batch)[:, None], ids].set(-jnp.inf, mode="drop")
    if state.plan.penalties:
        seen = state.prompted | (state.counts > 0)
        repetition = state.repetition_penalty[:, None]
        repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
        logits = jnp.where(seen, repeated, logits)
        logits = logits - state.frequency_penalty[:, None] * state.counts
        logits = logits - state.presence_penalty[:, None] * (state.counts > 0)
    return logits


def keep(scaled, state, implementation="xla"):
    """Min-p, then top-k, then top-p, each on what the one before left: -inf for the rest. [B, V] -> [B, V]."""
    plan = state.plan
    if plan.min_p:
        # p >= min_p * max(p), in logarithms.
        edge = scaled.max(axis=-1, keepdims=True) + state.min_p[:, None]
        scaled = jnp.where(scaled < edge, -jnp.inf, scaled)
    if plan.top_k or plan.top_p:
        top_k, top_p = state.top_k if plan.top_k else None, state.top_p if plan.top_p else None
        kept = top_k_top_p(scaled, top_k, top_p, implementation=implementation)
        scaled = jnp.where(kept, scaled, -jnp.inf)
    return scaled


def gumbel(key, step, vocabulary):
    """Standard Gumbel noise float32 [B, V], of each row's key and step."""
    keys = jax.random.wrap_key_data(fold_in(key, step), impl="threefry2x32")
    bits = jax.vmap(lambda k: jax.random.bits(k, (vocabulary,), jnp.uint32))(keys)
    # -log(-log(1 - u)): the large values, which win, come from small u, where floats are fine; u stays below 1.
    uniform = jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-uniform))


def logprobs_of(logits: jax.Array, tokens: jax.Array, n: int) -> Logprobs:
    """Of tokens, int32 [B], by logits, float32 [B, V], and of the n most likely."""
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    own = _at(logits, tokens)[:, None]
    equal_before = (logits == own) & (jnp.arange(logits.shape[1]) < tokens[:, None])
    # In the order of logits: two that differ may have the same rounded log-probability.
    _, top_ids = jax.lax.top_k(jnp.where(logits == 0, 0.0, logits), n)
    return Logprobs(
        sampled=_at(logprobs, tokens),
        rank=1 + ((logits > own) | equal_before).sum(axis=-1, dtype=jnp.int32),
        top_ids=top_ids,
        top=jnp.take_along_axis(logprobs, top_ids, axis=-1),
    )


def _at(values, index):
    """values[b, index[b]] of [B, C] and [B]."""
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
