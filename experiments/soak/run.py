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
        gap: how much the lone run's scores have to change at least for either of the two to be drawn: for one to pass
            the other, or for the better one no longer to be kept by min-p, top-k and top-p; and for each to be kept at
            all. Infinite where one of them was not to be drawn.
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
    scores = scaled = process(logits, state, step)
    if not params.greedy:
        scaled = scores / state.temperature[:, None]
        scores = scaled + gumbel(state.key, step, config.vocab_size)
    # One that ends where the other goes on drew an id that ends it, which is not among its tokens.
    scores, scaled = np.asarray(scores[0]), np.asarray(scaled[0])
    end = max((int(end) for end in state.ends[0] if end >= 0), key=lambda end: scores[end], default=None)
    pair = [ids[at] if at < len(ids) else end for ids in (row.ids, alone.ids)]
    if None in pair or not np.isfinite(scores[pair]).all():
        return Difference(number, at, math.inf)
    better, other = sorted(pair, key=lambda token: -scores[token])
    gap = float(scores[better] - scores[other])
    if not params.greedy:
        margin, others = (margin_to_be_kept(scaled, params, token) for token in (better, other))
        gap = max(min(gap, max(0.0, margin)), -margin, -others)
    return Difference(number, at, gap)


def margin_to_be_kept(scaled: np.ndarray, params: SamplingParams, token: int) -> float:
    """How much logits have to change at least for min-p, top-k and top-p to drop a token that they keep; of one that
    they drop, less than 0, to keep it.

    Args:
        scaled: float32 [V], logits divided by the temperature.
    """
    own, others = scaled[token], np.delete(scaled, token)
    most, p = scaled.max(), params.top_p
    margins = [math.inf]
    if params.min_p:
        least = most + math.log(params.min_p)
        margins.append(own - least if own < most else math.inf)
        others = others[others >= least]
    if 0 < params.top_k <= len(others):
        others = np.sort(others)
        margins.append(own - others[-params.top_k])
        others = others[1 - params.top_k :] if params.top_k > 1 else others[:0]  # beside it, as if it were kept
    above = others[others > own]
    if p < 1 and len(above):  # what is above it has to weigh so much more, or less, beside the rest
        before, rest = np.exp(above - most).sum(), np.exp(own - most) + np.exp(others[others <= own] - most).sum()
        margins.append(math.log(p / (1 - p)) - math.log(before / rest) if rest > 0 else -math.inf)
    return float(min(margins))
