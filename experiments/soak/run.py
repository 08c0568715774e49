"""Runs requests together and each alone, and compares."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence

import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import next_power_of_2

from experiments.soak.traffic import Request
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.row import Row
from tokenspeed.llm import LLM
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.sampling.sample import gumbel, process
from tokenspeed.sampling.state import make_state


@dataclasses.dataclass
class Found:
    """What a run of requests gave.

    Attributes:
        rows: of all. cancelled: how many were. longest_wait: steps from arrival to first admission, at most.
        free_at_end: pages of the pool that nobody holds.
    """

    rows: list[Row]
    cancelled: int = 0
    longest_wait: int = 0
    free_at_end: int = 0


@dataclasses.dataclass(frozen=True)
class Difference:
    """A row whose tokens differ from those of the same row alone: from which on, and how near those two were.

    Attributes:
        gap: between the scores of the two tokens in the lone run, or what one of them lacked to be kept by min-p, top-k
            or top-p, where that is more; infinite where one of them was not to be drawn at all.
    """

    request: int
    token: int
    gap: float


def row_of(llm: LLM, request: Request) -> Row:
    return Row(
        0, list(request.prompt), request.params, request.sample, request.seed, tokenizer=llm.tokenizer,
        max_context=llm.max_context, config=llm.model.config,
    )  # fmt: skip


def together(
    llm: LLM, engine: Engine, asked: Sequence[Request], *, tick: Callable[[int], None] = lambda done: None
) -> Found:
    """Runs requests as they come, are cancelled and end.

    Args:
        tick: told after each step how many have ended.

    Raises:
        RuntimeError: some do not end.
    """
    found, steps, done = Found([]), 0, 0
    leaving: dict[Hashable, int] = {}
    for i, request in enumerate(asked):
        for _ in range(request.after):
            done += _step(engine, leaving, steps, found)
            steps += 1
        row = row_of(llm, request)
        # A prompt's samples come one after the other, the first of them first.
        engine.add(i, row, priority=request.priority, leader=i - request.sample if request.sample else None)
        found.rows.append(row)
        if request.cancel_after is not None:
            leaving[i] = steps + request.cancel_after
        tick(done)
    bound = steps + 200 * len(asked) + 10_000
    while not engine.is_idle:
        done += _step(engine, leaving, steps, found)
        steps += 1
        tick(done)
        if steps > bound:
            left = len(asked) - done - found.cancelled
            raise RuntimeError(f"{left} requests have not ended after {steps} steps")
    found.free_at_end = engine.pool.available
    return found


def _step(engine: Engine, leaving: dict[Hashable, int], steps: int, found: Found) -> int:
    """A step; how many ended in it."""
    for id in [id for id, at in leaving.items() if at <= steps]:
        del leaving[id]
        if found.rows[id].reason is None:
            engine.cancel(id)
            found.cancelled += 1
    ended = sum(row.reason is not None for _, row in engine.step())
    found.longest_wait = max(found.longest_wait, engine.scheduler.longest_wait)
    return ended


class Alone:
    """The same requests, each alone in an engine of its own; what was asked before is remembered."""

    def __init__(self, llm: LLM, engine: Engine):
        self._llm, self._engine, self._known = llm, engine, {}

    def row(self, request: Request) -> Row:
        key = request.prompt, repr(request.params), request.sample
        if key not in self._known:
            row = self._known[key] = row_of(self._llm, request)
            self._engine.add(0, row)
            while row.reason is None:
                self._engine.step()
            self._engine.drain()
        return self._known[key]


def same(one: Row, other: Row) -> bool:
    """Whether two rows are the same bits."""
    return (one.ids, one.text, one.reason, one.logprobs, one.prompt_logprobs) == (
        other.ids, other.text, other.reason, other.logprobs, other.prompt_logprobs,
    )  # fmt: skip


def difference(llm: LLM, number: int, request: Request, row: Row, alone: Row) -> Difference | None:
    """How near two tokens were where a row departs from itself alone; None where its tokens are the same."""
    both = list(zip(row.ids, alone.ids))
    at = next((i for i, (a, b) in enumerate(both) if a != b), len(both))
    if at == len(row.ids) == len(alone.ids):
        return None
    params, config = request.params, llm.model.config
    given = [*request.prompt, *alone.ids[:at]]
    # Padded, that few lengths are compiled: no token sees those behind it.
    padded = given + [0] * (min(next_power_of_2(len(given)), config.max_positions) - len(given))
    logits = llm.logits([padded])[:, len(given) - 1]
    state = make_state(
        [params], [list(request.prompt)], config.vocab_size, config.eos_ids, outputs=[alone.ids[:at]],
        samples=[request.sample], default_seeds=[request.seed],
    )  # fmt: skip
    step = jnp.array([at], jnp.int32)
    scores, missing = process(logits, state, step), 0.0
    if not params.greedy:
        scaled = scores / state.temperature[:, None]
        scores = scaled + gumbel(state.key, step, config.vocab_size)
    # One that ends where the other goes on drew an id that ends it, which is not among its tokens.
    scores = np.asarray(scores[0])
    end = max((int(end) for end in state.ends[0] if end >= 0), key=lambda end: scores[end], default=None)
    pair = [ids[at] if at < len(ids) else end for ids in (row.ids, alone.ids)]
    if None in pair:
        return Difference(number, at, math.inf)
    if not params.greedy:
        missing = max(missing_to_be_kept(np.asarray(scaled[0]), params, token) for token in pair)
    first, second = (float(scores[token]) for token in pair)
    gap = max(abs(first - second), missing) if np.isfinite([first, second]).all() else math.inf
    return Difference(number, at, gap)


def missing_to_be_kept(scaled: np.ndarray, params: SamplingParams, token: int) -> float:
    """How much logits have to change at least for min-p, top-k and top-p to keep a token; 0 where they do.

    Args:
        scaled: float32 [V], logits divided by the temperature.
    """
    own, most = scaled[token], scaled.max()
    missing = [0.0]
    if params.min_p:
        least = most + math.log(params.min_p)
        missing.append(least - own)
        scaled = np.where(scaled >= least, scaled, -np.inf)
    if params.top_k:
        least = np.sort(scaled)[-min(params.top_k, len(scaled))]
        missing.append(least - own)
        scaled = np.where(scaled >= least, scaled, -np.inf)
    scaled = np.where(np.arange(len(scaled)) == token, own, scaled)  # as if the others had let it pass
    masses, p = np.exp(scaled - most), params.top_p
    if p == 0:
        missing.append(most - own)
    before, rest = masses[scaled > own].sum(), masses[scaled <= own].sum()
    if 0 < p < 1 and before > 0:  # what is before it has to come down by so much, beside the rest
        missing.append(math.log(before / rest) - math.log(p / (1 - p)) if rest > 0 else math.inf)
    return float(max(missing))
