"""The rows of a batch and their sampling parameters, as arrays on the device; and what is compiled for them."""

import dataclasses
import math
import secrets
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import pallas as pl

from tokenspeed.sampling.params import SamplingParams

MIN_TEMPERATURE = 0.01
"""Lower temperatures, except 0, count as this one, as in vLLM: below it logits / temperature may overflow."""
MIN_ENDS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """What is compiled: the stages that some row of the batch needs. Hashable, and static under jit.

    Attributes:
        random: a row is not greedy. bias, min_tokens, penalties: a row needs that stage.
        min_p, top_k, top_p: a row that is not greedy needs that stage.
        ends: E, the width of the table of ids that end a row.
    """

    random: bool = False
    bias: bool = False
    min_tokens: bool = False
    penalties: bool = False
    min_p: bool = False
    top_k: bool = False
    top_p: bool = False
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
    """The rows' parameters and what they have generated; a pytree, made by `make_state` or from `SamplingRows`.

    Sizes: B rows, V vocabulary, E ids that end a row.

    Attributes:
        temperature: float32 [B]; 0 is greedy.
        top_k: int32 [B], 1 to V, V where off. top_p: float32 [B], 1 where off.
        min_p: float32 [B], the natural logarithm of min-p, -inf where off.
        presence_penalty, frequency_penalty, repetition_penalty: float32 [B].
        key: uint32 [B, 2], a threefry key for each row.
        min_tokens: int32 [B]. ends: int32 [B, E], the ids that end the row, padded with -1.
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
    bias: jax.Array | None
    counts: jax.Array | None
    prompted: jax.Array | None
    plan: SamplingPlan = dataclasses.field(metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingRows:
    """What a SamplingState is made of, on the host; a pytree, made by `make_rows`.

    Attributes:
        words: uint32 [B, 11 + E], the numbers of each row side by side, bit by bit: every array more would be a copy
            of its own to the device, and a wait of its own for the host.
        bias, counts, prompted: as in SamplingState.
        plan: SamplingPlan, static.
    """

    words: np.ndarray
    bias: np.ndarray | None
    counts: np.ndarray | None
    prompted: np.ndarray | None
    plan: SamplingPlan = dataclasses.field(metadata=dict(static=True))

    def state(self) -> SamplingState:
        """The state; to be called under jit, to which these arrays are passed."""
        numbers = _unpacked(self.words)
        key = fold_in(numbers.pop("seed"), numbers.pop("sample"))
        tables: dict[str, Any] = dict(bias=self.bias, counts=self.counts, prompted=self.prompted)
        return SamplingState(**numbers, key=key, **tables, plan=self.plan)


def make_plan(params: Sequence[SamplingParams], vocab_size: int, eos_ids: Sequence[int]) -> SamplingPlan:
    """The smallest plan that these rows need; the number in it is rounded up, so that few plans are compiled.

    Args:
        params: of each row. vocab_size: V, the width of the logits. eos_ids: the model's own end-of-sequence ids.
    """
    random = [p for p in params if not p.greedy]
    return SamplingPlan(
        random=bool(random),
        bias=any(p.needs_bias for p in params),
        min_tokens=any(p.min_tokens for p in params),
        penalties=any(p.needs_penalties for p in params),
        min_p=any(p.min_p for p in random),
        top_k=any(0 < p.top_k < vocab_size for p in random),
        top_p=any(p.top_p < 1 for p in random),
        ends=max([MIN_ENDS, *(pl.next_power_of_2(len(_ends(p, eos_ids))) for p in params)]),
    )


def make_rows(
    params: Sequence[SamplingParams],
    prompts: Sequence[Sequence[int]],
    vocab_size: int,
    eos_ids: Sequence[int],
    *,
    outputs: Sequence[Sequence[int]] | None = None,
    samples: Sequence[int] | None = None,
    default_seeds: Sequence[int] | None = None,
    plan: SamplingPlan | None = None,
) -> SamplingRows:
    """B rows, built on the host; nothing is put on the device.

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

    seeds = [default if p.seed is None else p.seed for p, default in zip(params, default_seeds)]
    if not all(0 <= seed < 2**64 for seed in seeds):
        raise ValueError(f"default_seeds: expected integers from 0 to {2**64 - 1}, got {min(seeds)} to {max(seeds)}")
    words = _packed(
        temperature=[p.temperature if p.greedy else max(p.temperature, MIN_TEMPERATURE) for p in params],
        top_k=[vocab_size if p.greedy else min(p.top_k or vocab_size, vocab_size) for p in params],
        top_p=[1.0 if p.greedy else p.top_p for p in params],
        # The logarithm is taken here, where it does not depend on the width of the device's vectors.
        min_p=[math.log(p.min_p) if p.min_p else -math.inf for p in params],
        presence_penalty=[p.presence_penalty for p in params],
        frequency_penalty=[p.frequency_penalty for p in params],
        repetition_penalty=[p.repetition_penalty for p in params],
        seed=[(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds],
        sample=samples,
        min_tokens=[p.min_tokens for p in params],
        ends=ends,
    )
    return SamplingRows(words=words, bias=bias, counts=counts, prompted=prompted, plan=plan)


def make_state(*arguments: Any, **options: Any) -> SamplingState:
    """The state of B rows, on the device; arguments and errors are those of `make_rows`."""
    return jax.device_put(make_rows(*arguments, **options)).state()


def words_of(plan: SamplingPlan) -> int:
    """How many `SamplingRows.words` a row has."""
    return _layout(plan.ends).itemsize // 4


def set_rows(state: SamplingState, rows: jax.Array, new: SamplingState) -> SamplingState:
    """Puts the R rows of `new` at `rows`, int32 [R], of `state`; both have the same plan (see `make_state`)."""
    if new.plan != state.plan:
        raise ValueError(f"new: expected the plan of state, {state.plan}, got {new.plan}")
    return jax.tree.map(lambda old, values: old.at[rows].set(values), state, new)


def _ends(params, eos_ids):
    """The ids that end a row, without repeats, in order."""
    return sorted({*(() if params.ignore_eos else eos_ids), *params.stop_token_ids})


def _check_ids(name, ids, vocab_size):
    ids = np.asarray(ids, np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"{name}: expected token ids from 0 to {vocab_size - 1}, got {ids.min()} to {ids.max()}")


def _layout(ends):
    """What lies in the words of a row, in this order, with so many ids that end it."""
    floats = "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"
    return np.dtype(
        [(name, np.float32) for name in floats]
        + [(name, np.int32) for name in ("top_k", "min_tokens", "sample")]
        + [("seed", np.uint32, (2,)), ("ends", np.int32, (ends,))]
    )


def _packed(**columns):
    """uint32 [B, words] of the columns of `_layout`, of B rows each."""
    rows = np.empty(len(columns["ends"]), _layout(columns["ends"].shape[1]))
    for name, values in columns.items():
        rows[name] = np.array(values, rows.dtype[name].base)  # where an integer too large is an error
    return rows.view(np.uint32).reshape(len(rows), -1)


@jax.jit
def _unpacked(words):
    """The columns [B] or [B, n] that were packed."""
    columns: dict[str, jax.Array] = {}
    fields: Any = _layout(words.shape[1] - _layout(0).itemsize // 4).fields
    for name, (kind, offset) in fields.items():
        part = words[:, offset // 4 :][:, : kind.itemsize // 4]
        columns[name] = jax.lax.bitcast_convert_type(part if kind.shape else part[:, 0], kind.base)
    return columns


@jax.jit
def fold_in(key, data):
    """A new key [B, 2] of each row's key and integer."""
    fold = lambda k, d: jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(k, impl="threefry2x32"), d))
    return jax.vmap(fold)(key, data)
