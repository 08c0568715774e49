"""From logits to tokens, on the device: every row of a batch by its own parameters.

The stages, in vLLM's order: bias and allowed ids, ids that may not end the row yet, penalties, temperature, min-p,
top-k, top-p, draw. A `SamplingPlan`, static under jit, says which of them any row needs; the others are not compiled,
so that greedy rows without penalties cost one argmax. A row's token depends on its own logits, parameters and step
alone, not on its place, its neighbours, or the stages that they ask for: noise belongs to (key, step, token id), a
stage is exact for a row that does not use it, and the masses of top-p are summed as integers, in which order does
not round.
"""

import dataclasses
import functools
import math
import secrets
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.common import checks
from pallas_kernels.common.tiles import power_of_two_at_least
from tokenspeed.sampling_params import MAX_INT, SamplingParams

MIN_TEMPERATURE = 0.01
"""Lower temperatures, except 0, count as this one, as in vLLM: below it logits / temperature may overflow."""
MIN_RANKED, MAX_RANKED = 64, 1024
"""A top-k up to MAX_RANKED ranks a power of two of candidates; beyond it, and for top-p alone, all V are sorted."""
MIN_ENDS = 4

RUNNING, STOPPED, LENGTH = 0, 1, 2
"""Reason codes of `finished`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """What is compiled: the stages that some row of the batch needs. Hashable, and static under jit.

    random: a row is not greedy. bias, min_tokens, penalties, min_p: that stage. ranked: how many of the most likely
    tokens top-k and top-p put in order, 0 for none. ends: E, the width of the table of ids that end a row.
    """

    random: bool = False
    bias: bool = False
    min_tokens: bool = False
    penalties: bool = False
    min_p: bool = False
    ranked: int = 0
    ends: int = MIN_ENDS

    @property
    def argmax(self) -> bool:
        """The tokens are the logits' argmax: no stage comes before it, and nothing is drawn."""
        return not (self.random or self.bias or self.min_tokens or self.penalties)

    def __or__(self, other: "SamplingPlan") -> "SamplingPlan":
        """The plan for the rows of both."""
        return SamplingPlan(**{k: max(v, getattr(other, k)) for k, v in dataclasses.asdict(self).items()})

    def covers(self, other: "SamplingPlan") -> bool:
        """Whether rows of the other plan can be sampled by this one."""
        return self | other == self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingState:
    """The rows' parameters and what they have generated; a pytree, made by `make_state`.

    Sizes: B rows, V vocabulary, E ids that end a row.

    Attributes:
        temperature: float32 [B]; 0 is greedy.
        top_k: int32 [B], 1 to V, V where off. top_p: float32 [B], 1 where off.
        min_p: float32 [B], the natural logarithm of min-p, -inf where off.
        presence_penalty, frequency_penalty, repetition_penalty: float32 [B].
        key: uint32 [B, 2], a threefry key for each row.
        min_tokens: int32 [B]. ends: int32 [B, E], the ids that end the row, padded with -1.
        broken: bool [B]: at some step so far the row had no finite logit to choose: NaN or +inf came from the model,
            or everything was masked. Its tokens are ids of the vocabulary but mean nothing: fail the request.
        bias: float32 [B, V], -inf where not allowed; None unless plan.bias.
        counts: int32 [B, V], how often the row generated each token; None unless plan.penalties.
        prompted: bool [B, V], whether the token is in the row's prompt; None unless plan.penalties.
        plan: SamplingPlan, static.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    repetition_penalty: jax.Array
    key: jax.Array
    min_tokens: jax.Array
    ends: jax.Array
    broken: jax.Array
    bias: jax.Array | None
    counts: jax.Array | None
    prompted: jax.Array | None
    plan: SamplingPlan = dataclasses.field(metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Logprobs:
    """log_softmax (natural logarithm) of the logits as the model gave them, before any stage.

    sampled: float32 [B], of the token that was drawn. rank: int32 [B], its place among all, from 1. top_ids: int32
    [B, n] and top: float32 [B, n], the n most likely, best first. Of equals the lowest id comes first in both.
    """

    sampled: jax.Array
    rank: jax.Array
    top_ids: jax.Array
    top: jax.Array


def make_plan(params: Sequence[SamplingParams], vocab_size: int, eos_ids: Sequence[int]) -> SamplingPlan:
    """The smallest plan that these rows need; the numbers in it are rounded up, so that few plans are compiled."""
    random = [p for p in params if not p.greedy]
    candidates = max((_candidates(p, vocab_size) for p in random), default=0)
    ranked = max(MIN_RANKED, power_of_two_at_least(candidates)) if candidates else 0
    return SamplingPlan(
        random=bool(random),
        bias=any(p.needs_bias for p in params),
        min_tokens=any(p.min_tokens for p in params),
        penalties=any(p.needs_penalties for p in params),
        min_p=any(p.min_p for p in random),
        ranked=vocab_size if ranked > MAX_RANKED else min(ranked, vocab_size),
        ends=max([MIN_ENDS, *(power_of_two_at_least(len(_ends(p, eos_ids))) for p in params)]),
    )


def make_state(
    params: Sequence[SamplingParams],
    prompts: Sequence[Sequence[int]],
    vocab_size: int,
    eos_ids: Sequence[int],
    *,
    outputs: Sequence[Sequence[int]] | None = None,
    samples: Sequence[int] | None = None,
    default_seeds: Sequence[int] | None = None,
    plan: SamplingPlan | None = None,
) -> SamplingState:
    """The state of B rows, built on the host.

    Args:
        params: B of them, one for each row; a request with n samples is n rows of the same params.
        prompts: B sequences of token ids.
        vocab_size: V, the width of the logits.
        eos_ids: the model's own end-of-sequence ids.
        outputs: B sequences of the ids that the rows have generated already (a row that is resumed); None for none.
        samples: B integers: which of its prompt's n samples a row draws, from 0; None: all 0.
        default_seeds: B integers, 0 to 2**64 - 1, for the rows whose params have no seed; None takes them from the
            operating system.
        plan: at least what the rows need, to reuse what was compiled or to take other rows later; None: just that.

    Raises:
        ValueError: a length is not B, a token id is not in the vocabulary, the plan leaves out a stage that a row
            needs, or a row's allowed ids all end it, before it may end.
    """
    rows = len(params)
    outputs = [()] * rows if outputs is None else outputs
    samples = [0] * rows if samples is None else samples
    default_seeds = [secrets.randbits(64) for _ in params] if default_seeds is None else default_seeds
    per_row = dict(prompts=prompts, outputs=outputs, samples=samples, default_seeds=default_seeds)
    for name, values in per_row.items():
        if len(values) != rows:
            raise ValueError(f"{name}: expected one for each of {rows} rows, got {len(values)}")
    if rows == 0:
        raise ValueError("params: expected at least one row, got none")
    _check_ids("eos_ids", eos_ids, vocab_size)
    needed = make_plan(params, vocab_size, eos_ids)
    plan = needed if plan is None else plan
    if not plan.covers(needed):
        raise ValueError(f"plan: expected at least {needed}, got {plan}")

    ends = np.full((rows, plan.ends), -1, np.int32)
    for row, p in enumerate(params):
        p.validate_for(vocab_size)
        _check_ids(f"prompts[{row}]", prompts[row], vocab_size)
        _check_ids(f"outputs[{row}]", outputs[row], vocab_size)
        own = _ends(p, eos_ids)
        ends[row, : len(own)] = own
        if p.min_tokens and set(range(vocab_size) if p.allowed_token_ids is None else p.allowed_token_ids) <= set(own):
            raise ValueError("allowed_token_ids: expected an id that does not end the sequence, since min_tokens > 0")

    bias = counts = prompted = None
    if plan.bias:
        bias = np.zeros((rows, vocab_size), np.float32)
        for row, p in enumerate(params):
            for token, value in (p.logit_bias or {}).items():
                bias[row, token] = value
            if p.allowed_token_ids is not None:
                bias[row, np.setdiff1d(np.arange(vocab_size), p.allowed_token_ids)] = -np.inf
    if plan.penalties:
        counts = np.zeros((rows, vocab_size), np.int32)
        prompted = np.zeros((rows, vocab_size), np.bool_)
        for row in range(rows):
            np.add.at(counts[row], np.asarray(outputs[row], np.int32), 1)
            prompted[row, np.asarray(prompts[row], np.int32)] = True

    column = lambda values, dtype=np.float32: jnp.asarray(np.array(list(values), dtype))
    seeds = [default if p.seed is None else p.seed for p, default in zip(params, default_seeds)]
    if not all(0 <= seed < 2**64 for seed in seeds):
        raise ValueError(f"default_seeds: expected integers from 0 to {2**64 - 1}, got {min(seeds)} to {max(seeds)}")
    return SamplingState(
        temperature=column(p.temperature if p.greedy else max(p.temperature, MIN_TEMPERATURE) for p in params),
        top_k=column((vocab_size if p.greedy else min(p.top_k or vocab_size, vocab_size) for p in params), np.int32),
        top_p=column(1.0 if p.greedy else p.top_p for p in params),
        # The logarithm is taken here, where it does not depend on the width of the device's vectors.
        min_p=column(math.log(p.min_p) if p.min_p else -math.inf for p in params),
        presence_penalty=column(p.presence_penalty for p in params),
        frequency_penalty=column(p.frequency_penalty for p in params),
        repetition_penalty=column(p.repetition_penalty for p in params),
        key=_fold_in(column(((s >> 32, s & 0xFFFFFFFF) for s in seeds), np.uint32), column(samples, np.int32)),
        min_tokens=column((p.min_tokens for p in params), np.int32),
        ends=jnp.asarray(ends),
        broken=jnp.zeros(rows, bool),
        bias=None if bias is None else jnp.asarray(bias),
        counts=None if counts is None else jnp.asarray(counts),
        prompted=None if prompted is None else jnp.asarray(prompted),
        plan=plan,
    )


def set_rows(state: SamplingState, rows: jax.Array, new: SamplingState) -> SamplingState:
    """Puts the R rows of `new` at `rows`, int32 [R], of `state`; both have the same plan (see `make_state`)."""
    if new.plan != state.plan:
        raise ValueError(f"new: expected the plan of state, {state.plan}, got {new.plan}")
    return jax.tree.map(lambda old, values: old.at[rows].set(values), state, new)


def sample(
    logits: jax.Array, state: SamplingState, step: jax.Array, *, logprobs: int | None = None
) -> tuple[jax.Array, Logprobs | None, SamplingState]:
    """Draws the next token of each row. Pure, of static shapes; to be called under jit.

    Args:
        logits: float32 [B, V], as the model gives them.
        state: of B rows and vocabulary V.
        step: int32 [B], how many tokens the row has generated before this one. It chooses the noise, so a row draws
            the same tokens however its steps are divided among calls.
        logprobs: static: how many of the most likely tokens to report; 0 reports the drawn token alone, None nothing.

    Returns:
        (tokens int32 [B], always in [0, V); Logprobs or None; the state with counts and broken brought up to date).

    Raises:
        ValueError, TypeError: a shape or dtype is wrong.

    The draw is Gumbel-max (Gumbel 1954): the largest of logit + noise has the probabilities of softmax. Of equal
    logits the lowest id comes first, in greedy rows and at the edge of top-k and top-p alike. NaN that is not masked
    counts as the largest, as in `jnp.argmax`; a row with nothing left gives id 0; both set `state.broken`.
    """
    checks.shape("logits", logits, (state.key.shape[0], "V"))
    batch, vocabulary = logits.shape
    if logits.dtype != jnp.float32:
        raise TypeError(f"logits: expected dtype float32, got {logits.dtype}")
    for name in ("bias", "counts", "prompted"):
        if getattr(state, name) is not None:
            checks.shape(f"state.{name}", getattr(state, name), (batch, vocabulary))
    checks.indices("step", step, (batch,), 0, MAX_INT)
    if logprobs is not None and not 0 <= logprobs <= vocabulary:
        raise ValueError(f"logprobs: expected None or 0 to {vocabulary}, got {logprobs}")

    scores = processed = _process(logits, state, step)
    if state.plan.random:
        greedy = (state.temperature == 0)[:, None]
        scaled = processed / jnp.where(greedy, 1.0, state.temperature[:, None])
        noisy = _keep(scaled, state) + _gumbel(state.key, step, vocabulary)
        scores = jnp.where(greedy, processed, noisy)
    tokens = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    # The largest of a row says it all: NaN wins argmax, and -inf only if there is nothing else.
    broken = state.broken | ~jnp.isfinite(_at(scores, tokens))
    counts = state.counts
    if counts is not None:
        counts = counts.at[jnp.arange(batch), tokens].add(1)
    state = dataclasses.replace(state, counts=counts, broken=broken)
    return tokens, None if logprobs is None else _logprobs(logits, tokens, logprobs), state


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


def _process(logits, state, step):
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


def _keep(scaled, state):
    """Min-p, then top-k, then top-p, each on what the one before left: -inf for the rest. [B, V] -> [B, V].

    What is kept is always a beginning of the order by (logit, descending; id, ascending), so its last member, as a
    (logit, id), is all that has to be found.
    """
    vocabulary = scaled.shape[1]
    if state.plan.min_p:
        # p >= min_p * max(p), in logarithms.
        edge = scaled.max(axis=-1, keepdims=True) + state.min_p[:, None]
        scaled = jnp.where(scaled < edge, -jnp.inf, scaled)
    if state.plan.ranked:
        scaled = jnp.where(scaled == 0, 0.0, scaled)  # top_k would rank -0.0 below the 0.0 that it equals
        values, ids = jax.lax.top_k(scaled, state.plan.ranked)
        last = _kept(values, state, vocabulary) - 1
        value, token = _at(values, last)[:, None], _at(ids, last)[:, None]
        beyond = (scaled < value) | ((scaled == value) & (jnp.arange(vocabulary) > token))
        # A row without top-k and top-p keeps what is beyond the ranked ones.
        filtered = (state.top_k < vocabulary) | (state.top_p < 1)
        scaled = jnp.where(filtered[:, None] & beyond, -jnp.inf, scaled)
    return scaled


def _kept(values, state, vocabulary):
    """How many of each row's ranked logits, [B, C] in descending order, top-k and top-p keep: int32 [B], 1 to C."""
    ranked = values.shape[1]
    top_k = jnp.minimum(state.top_k, ranked)
    weights = jnp.where(jnp.arange(ranked) < top_k[:, None], jnp.exp(values - values[:, :1]), 0.0)
    weights = jnp.where(weights >= 0, weights, 0.0)  # not NaN, which no integer can hold
    # Running sums in fixed point, three digits of as many bits as V of them can be summed in 32: their rounding
    # depends neither on how the device orders the sum nor on how many candidates the batch asked for. (XLA on a CPU
    # may round exp differently at the end of a vector: there, and only where a mass is within 1e-7 of top-p, it shows.)
    bits = 31 - (vocabulary - 1).bit_length()
    mass, unit = 0.0, 1.0
    for _ in range(3):
        weights = weights * 2.0**bits
        digit = jnp.floor(weights)
        weights, unit = weights - digit, unit * 2.0**-bits
        mass = mass + jnp.cumsum(digit.astype(jnp.uint32), axis=-1).astype(jnp.float32) * unit
    short = mass < state.top_p[:, None] * mass[:, -1:]
    top_p = jnp.where(state.top_p < 1, 1 + short.sum(axis=-1), ranked)
    return jnp.clip(jnp.minimum(top_k, top_p), 1, ranked)


def _gumbel(key, step, vocabulary):
    """Standard Gumbel noise float32 [B, V], of each row's key and step."""
    keys = jax.random.wrap_key_data(_fold_in(key, step), impl="threefry2x32")
    bits = jax.vmap(lambda k: jax.random.bits(k, (vocabulary,), jnp.uint32))(keys)
    # -log(-log(1 - u)): the large values, which win, come from small u, where floats are fine; u stays below 1.
    uniform = jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-uniform))


@jax.jit
def _fold_in(key, data):
    """A new key [B, 2] of each row's key and integer."""
    fold = lambda k, d: jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(k, impl="threefry2x32"), d))
    return jax.vmap(fold)(key, data)


def _logprobs(logits, tokens, n):
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    own = _at(logits, tokens)[:, None]
    equal_before = (logits == own) & (jnp.arange(logits.shape[1]) < tokens[:, None])
    # Ranked by logit: two that differ may have the same rounded log-probability.
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


def _candidates(params, vocab_size):
    """How many of its most likely tokens a random row must have in order; 0 for none."""
    if 0 < params.top_k < vocab_size:
        return params.top_k
    return vocab_size if params.top_p < 1 else 0


def _ends(params, eos_ids):
    """The ids that end a row, without repeats, in order."""
    return sorted({*(() if params.ignore_eos else eos_ids), *params.stop_token_ids})


def _check_ids(name, ids, vocab_size):
    ids = np.asarray(ids, np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"{name}: expected token ids from 0 to {vocab_size - 1}, got {ids.min()} to {ids.max()}")
