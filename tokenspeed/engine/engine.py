"""Engine: requests in, tokens out, step by step; the host is one step ahead of the tokens that it looks at."""

import dataclasses
import time
from collections import deque
from collections.abc import Hashable
from typing import Any

import jax

from tokenspeed.engine.generation import BROKEN, ENDED, Drawn
from tokenspeed.engine.page_pool import PagePool
from tokenspeed.engine.row import Row
from tokenspeed.engine.runner import Runner
from tokenspeed.engine.scheduler import Limits, Scheduler
from tokenspeed.engine.sequence import Plan, Sequence
from tokenspeed.sampling.state import SamplingPlan, make_plan, make_rows


@dataclasses.dataclass(eq=False)
class _Seat:
    """A sequence with its row, and what the device has been told of it.

    Attributes:
        slot: of the batch, None while it waits. pages_told: how many of its pages the device knows.
        plan: the sampling plan that the row needs.
    """

    sequence: Sequence
    row: Row
    plan: SamplingPlan
    slot: int | None = None
    pages_told: int = 0


class Engine:
    """Continuous batching over one runner. Not for several threads.

    Args:
        runner: of the model. limits: of a step. vocab_size, eos_ids: of the model.
        steps: of decode that are started together where nothing waits, a power of two.
        reuse: whether prompts reuse the pages of others that began alike.
    """

    def __init__(
        self, runner: Runner, limits: Limits, *, vocab_size: int, eos_ids: Any, steps: int = 1, reuse: bool = True
    ):
        self._steps = steps
        self.pool = PagePool(runner.sizes.pages, runner.sizes.page_size, reuse=reuse)
        self.scheduler = Scheduler(self.pool, limits)
        self._runner, self._vocab_size, self._eos_ids = runner, vocab_size, eos_ids
        self._seats: dict[Hashable, _Seat] = {}
        self._free = list(reversed(range(runner.sizes.slots)))
        self._flying: deque[list[tuple[Drawn, list[_Seat]]]] = deque()
        self._begun = time.perf_counter()

    @property
    def is_idle(self) -> bool:
        return self.scheduler.is_empty and not self._flying

    def add(self, id: Hashable, row: Row, *, priority: int = 0) -> None:
        """A sample of a prompt to be generated; its row takes the tokens.

        Raises:
            ValueError: it can never fit, or the id is under way.
        """
        sequence = Sequence(id=id, prompt=row.prompt, max_tokens=row.max_tokens, priority=priority)
        plan = make_plan([row.params], self._vocab_size, self._eos_ids)
        if not self._runner.plan.covers(plan):
            raise ValueError(f"params: this engine was not made for {plan}")
        self.scheduler.add(sequence)
        self._seats[id] = _Seat(sequence, row, plan)

    def cancel(self, id: Hashable) -> None:
        """Ends a sample, in any state; nothing happens where it has ended."""
        if (seat := self._seats.pop(id, None)) is not None:
            self._leave(seat)

    def step(self) -> list[tuple[Hashable, Row]]:
        """Starts a step and takes the tokens of the one before; the ids and rows of those that got some."""
        plan = self.scheduler.plan(self._steps)
        for sequence in plan.preempted:
            self._unseat(self._seats[sequence.id])
        if plan.tokens:
            self._flying.append(self._dispatch(plan))
            self.scheduler.advance(plan)
        if self._flying and (len(self._flying) > 1 or not plan.tokens):
            return self._take(self._flying.popleft())
        return []

    def _dispatch(self, plan: Plan) -> list[tuple[Drawn, list[_Seat]]]:
        seats = [self._seats[s.id] for s in (*(c.sequence for c in plan.chunks), *plan.decodes)]
        self._runner.turn([entry for seat in seats for entry in _pages_to_tell(seat, self._slot(seat))])
        started = []
        for chunk in plan.chunks:
            slot = self._slot(self._seats[chunk.sequence.id])
            tokens = chunk.sequence.tokens[chunk.start : chunk.start + chunk.length]
            self._runner.chunk(slot, chunk.start, tokens)
        ends = [self._seats[chunk.sequence.id] for chunk in plan.chunks if chunk.final]
        if ends:
            started.append((self._runner.first(*self._rows(ends, final=True)), ends))
        decodes = [self._seats[s.id] for s in plan.decodes]
        if decodes:
            rows, sampling, logprobs = self._rows(decodes, final=False)
            started.append((self._runner.steps(rows, plan.steps, sampling, logprobs), decodes))
        for drawn, _ in started:
            for array in jax.tree.leaves(drawn):
                array.copy_to_host_async()
        return started

    def _rows(self, seats: list[_Seat], *, final: bool) -> tuple[list[tuple], SamplingPlan, int | None]:
        """(slot, position, tokens drawn, max_tokens) of each, the plan that covers them, and the logprobs to report."""
        rows, plan, asked = [], seats[0].plan, []
        for seat in seats:
            s = seat.sequence
            position = s.prefill_end - 1 if final else s.computed
            rows.append((seat.slot, position, len(s.output) + s.pending, s.max_tokens))
            plan |= seat.plan
            asked += [] if seat.row.params.logprobs is None else [seat.row.params.logprobs]
        return rows, plan, max(asked) if asked else None

    def _take(self, started: list[tuple[Drawn, list[_Seat]]]) -> list[tuple[Hashable, Row]]:
        taken = []
        for drawn, seats in started:
            drawn = jax.device_get(drawn)
            now = time.perf_counter() - self._begun
            for i, seat in enumerate(seats):
                sequence, row = seat.sequence, seat.row
                if self._seats.get(sequence.id) is not seat:
                    continue  # it has ended meanwhile
                tokens = [int(token) for token in drawn.tokens[:, i] if token != ENDED]
                if BROKEN in tokens:
                    self._forget(sequence)
                    row.reason = "error"
                else:
                    for token in tokens:
                        self.scheduler.append(sequence, token)
                    row.take(drawn, i, now)
                taken.append((sequence.id, row))
                if row.reason is not None:
                    del self._seats[sequence.id]
                    self._leave(seat)
        return taken

    def _forget(self, sequence: Sequence) -> None:
        """Lets nobody find what was computed of a sequence whose logits are not finite, whoever holds its pages now."""
        pages = self.pool.take_prefix(sequence.tokens)
        self.pool.forget(list(dict.fromkeys([*pages, *sequence.pages])))
        self.pool.release(pages)

    def _slot(self, seat: _Seat) -> int:
        """Its slot of the batch, which it gets where it has none."""
        if seat.slot is not None:
            return seat.slot
        slot = seat.slot = self._free.pop()
        seat.pages_told = 0
        s, row = seat.sequence, seat.row
        rows = make_rows(
            [row.params], [s.prompt], self._vocab_size, self._eos_ids, outputs=[s.output], samples=[row.sample],
            default_seeds=[row.seed], plan=self._runner.plan,
        )  # fmt: skip
        self._runner.seat(slot, rows)
        return slot

    def _unseat(self, seat: _Seat) -> None:
        if seat.slot is not None:
            self._free.append(seat.slot)
            seat.slot = None

    def _leave(self, seat: _Seat) -> None:
        self.scheduler.finished(seat.sequence)
        self._unseat(seat)


def _pages_to_tell(seat: _Seat, slot: int) -> list[tuple[int, int, int]]:
    """Of the pages that it was given since the last look."""
    new = seat.sequence.pages[seat.pages_told :]
    entries = [(slot, seat.pages_told + i, page) for i, page in enumerate(new)]
    seat.pages_told += len(new)
    return entries
