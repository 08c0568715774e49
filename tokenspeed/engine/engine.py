"""Engine: requests in, tokens out, step by step; the host is one step ahead of the tokens that it looks at."""

import dataclasses
import time
from collections import deque
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental.pallas import next_power_of_2

from tokenspeed.engine.generation import BROKEN, Drawn
from tokenspeed.engine.kinds import FULL, KINDS, Kind, kind_of
from tokenspeed.engine.limits import Limits
from tokenspeed.engine.metrics import Metrics
from tokenspeed.engine.pace import Pace
from tokenspeed.engine.page_pool import PagePool
from tokenspeed.engine.reading import Reading
from tokenspeed.engine.row import Row
from tokenspeed.engine.runner import ChunkRow, Program, Runner
from tokenspeed.engine.scheduler import Scheduler
from tokenspeed.engine.sequence import Chunk, Plan, Sequence
from tokenspeed.sampling.sample import Logprobs
from tokenspeed.sampling.state import SamplingRows, make_plan, make_rows


@dataclasses.dataclass(eq=False)
class _RequestState:
    """A request's sequence with its row, and what the device has been told of it.

    Attributes:
        kind: of drawing, that the row needs. words: of `SamplingRows`. tables: whether the row needs any.
        slot: of the batch, None while it waits. pages_told: how many of its pages the device knows.
    """

    sequence: Sequence
    row: Row
    kind: Kind
    words: np.ndarray
    tables: bool
    slot: int | None = None
    pages_told: int = 0


class _InFlight(NamedTuple):
    """A call under way, and whose tokens it draws."""

    drawn: Drawn
    states: list[_RequestState]


class _Scored(NamedTuple):
    """A call under way that says how likely the tokens behind `count` of a prompt's are, from `start` on."""

    found: Logprobs
    state: _RequestState
    start: int
    count: int


class _Filled(NamedTuple):
    """A call under way that puts tokens into the cache, of which nothing else tells that it has ended."""

    done: jax.Array


_Call = _InFlight | _Scored | _Filled


class Engine:
    """Continuous batching over one runner. Not for several threads.

    Args:
        runner: of the model. limits: of a step.
        steps: of decode that are started together where nothing waits, at most a page.
        reuse: whether prompts reuse the pages of others that began alike.
        by_kind: each kind of drawing has a call of its own in a step; else the widest does for all.

    Raises:
        ValueError: the limits, the steps and the runner's sizes do not go together.
    """

    def __init__(self, runner: Runner, limits: Limits, *, steps: int = 1, reuse: bool = True, by_kind: bool = False):
        sizes = runner.sizes
        if limits.max_rows > sizes.slots:
            raise ValueError(f"max_rows: expected at most the runner's slots, {sizes.slots}, got {limits.max_rows}")
        if limits.max_context > sizes.max_context:
            raise ValueError(
                f"max_context: expected at most the runner's, {sizes.max_context}, got {limits.max_context}"
            )
        if limits.replay and steps > 1:
            raise ValueError(f"steps: expected 1 where what was preempted is drawn again, got {steps}")
        if not 1 <= steps <= sizes.page_size:
            raise ValueError(f"steps: expected 1 to {sizes.page_size}, the tokens of a page, got {steps}")
        self.runner, self._steps, self._by_kind = runner, steps, by_kind
        together = max(1, limits.align // sizes.page_size)
        self.pool = PagePool(sizes.pages, sizes.page_size, reuse=reuse, together=together)
        self.scheduler = Scheduler(self.pool, limits)
        self.metrics, self._pace = Metrics(), Pace()
        self._reading = Reading(self.metrics, runner.config, runner.dtype, runner.kv)
        self._states: dict[Hashable, _RequestState] = {}
        self._free = list(reversed(range(sizes.slots)))
        self._in_flight: deque[list[_Call]] = deque()
        self._begun = time.perf_counter()

    @property
    def is_idle(self) -> bool:
        return self.scheduler.is_empty and not self._in_flight

    def now(self) -> float:
        """Seconds since it was made, less those in which programs were compiled."""
        return time.perf_counter() - self._begun - self.runner.compile_s

    def add(self, id: Hashable, row: Row, *, priority: int = 0, leader: Hashable = None) -> None:
        """A sample of a prompt to be generated; its row takes the tokens.

        Args:
            id: unlike that of any other sample under way. priority: lower runs first.
            leader: the id of another sample of this prompt, under way or not, whose pages it shares.

        Raises:
            ValueError, TypeError: it can never fit, the id is under way, or something of the row cannot be run.
        """
        config, params = self.runner.config, row.params
        plan = make_plan([params], config.vocab_size, config.eos_ids)
        kind, words = kind_of(plan, params.logprobs), self._sampling(row, tables=False).words[0]
        other = None if leader is None else self._states.get(leader)
        if params.max_tokens is None:  # up to the end of the context, or of the pool
            row.max_tokens = max(1, min(row.max_tokens, self.pool.pages * self.pool.page_size + 1 - len(row.prompt)))
        sequence = Sequence(
            id=id, prompt=row.prompt, max_tokens=row.max_tokens, priority=priority, leader=other and other.sequence,
            reuse=row.prompt_logprobs is None,
        )  # fmt: skip
        self.scheduler.add(sequence)
        row.begin(self.now(), self.runner.compile_s)
        self._states[id] = _RequestState(sequence, row, kind, words, plan.bias or plan.penalties)

    def cancel(self, id: Hashable) -> None:
        """Ends a sample, in any state; nothing happens where it has ended."""
        if (state := self._states.pop(id, None)) is not None:
            self._leave(state)

    def hold_s(self) -> float:
        """Seconds that `step` had better be called later, see `Pace`: who comes meanwhile is in that step."""
        return self._pace.hold(self.now()) if self._is_waited_for() else 0.0

    def step(self) -> list[tuple[Hashable, Row]]:
        """Starts a step and takes the tokens of the one before; the ids and rows of those that got some or ended."""
        begun, waited = self.now(), self.metrics.wait_s
        taken = self._step()
        self.metrics.stepped(self.now() - begun, self.metrics.wait_s - waited)
        return taken

    def _step(self) -> list[tuple[Hashable, Row]]:
        plan = self.scheduler.plan(self._steps_at_once())
        for sequence in plan.preempted:
            self._free_slot(self._states[sequence.id])
        if plan.tokens:
            self._pace.starting(self.now())
            self._reading.begun(plan, self.now())
            self._in_flight.append(self._dispatch(plan))
            tokens = sum(self.runner.shapes.padded(chunk.length) for chunk in plan.chunks)
            self._pace.begun((tokens, next_power_of_2(len(plan.decodes)), plan.steps), self.now())
            self.scheduler.advance(plan)
            self.metrics.steps += 1
            self.metrics.prefill_tokens += sum(chunk.length for chunk in plan.chunks)
        if self._in_flight and (len(self._in_flight) > 1 or not plan.tokens):
            taken = self._take(self._in_flight.popleft())
            for clock in (self._pace, self._reading):
                clock.ended(self.now())
            return taken
        return []

    def drain(self) -> None:
        """Where nothing is under way for anybody: drops what the device still draws, and waits for it."""
        if self.scheduler.is_empty:
            self._in_flight.clear()
            self._pace.forget()
            self._reading.forget()
            self.runner.settle()

    def close(self) -> None:
        """Ends all that is under way, and waits for the device."""
        for id in list(self._states):
            self.cancel(id)
        self.drain()

    def programs_for(self, row: Row, samples: int) -> list[Program]:
        """What a prompt with so many samples runs, where nothing is known of it and nobody else is there."""
        runner, shapes, limits = self.runner, self.runner.shapes, self.scheduler.limits
        config, length, most = runner.config, len(row.prompt), min(row.max_tokens, limits.max_context - len(row.prompt))
        kind = kind_of(make_plan([row.params], config.vocab_size, config.eos_ids), row.params.logprobs)
        found = [Program("tables")] if row.params.needs_bias or row.params.needs_penalties else []
        known = (length - 1) // self.pool.page_size * self.pool.page_size
        for count, begin in ((1, 0), *([(samples - 1, known)] if samples > 1 else [])):
            for start in range(begin, length, limits.chunk):
                if row.prompt_logprobs is not None and count == 1:
                    found.append(runner.score_program())
                    continue
                for part in shapes.split(min(limits.chunk, length - start)):
                    found += [runner.chunk_program(shape, start) for shape, _ in shapes.pack([part] * count)]
                    start += part
            found.append(Program("first", *reversed(shapes.first_for(kind, count))))
        counts = {shapes.decode_for(kind, count, 1)[1] for count in range(1, samples + 1)}  # as they come and end
        while most > 1:
            of = [
                shapes.decode_for(kind, n, steps) for n in sorted(counts) for steps in {1, min(self._steps, most - 1)}
            ]
            found += [runner.steps_program(one, length + most) for one in of]
            most //= 2
        return list(dict.fromkeys(found))

    def _steps_at_once(self) -> int:
        """As many as every program of decode that this step may take has, and somebody may draw."""
        running = [self._states[s.id] for s in self.scheduler.running if not s.exhausted]
        if self._steps == 1 or not running:
            return 1
        if max(state.sequence.may_draw for state in running) < self._steps:
            return 1
        return self.runner.shapes.decode_for(_widest(running), len(running), self._steps)[2]

    def _is_waited_for(self) -> bool:
        """Whether the first step under way has not ended, however long it was taken to last."""
        return bool(self._in_flight) and not all(
            array.is_ready() for call in self._in_flight[0] for array in jax.tree.leaves(call[0])
        )

    def _dispatch(self, plan: Plan) -> list[_Call]:
        decodes = {s.id: self._row(self._states[s.id], s.computed) for s in plan.decodes}
        in_flight, done, mixed = self._chunks(plan.chunks, list(decodes.values()))
        firsts = [chunk.sequence for chunk in plan.chunks if chunk.final]
        for states in self._groups([*firsts, *plan.decodes] if mixed else firsts):
            while states:
                _, count = self.runner.shapes.first_for(_widest(states), len(states))
                some, states = states[:count], states[count:]
                rows = [
                    decodes.get(state.sequence.id) or self._row(state, state.sequence.prefill_end - 1) for state in some
                ]
                in_flight.append(_InFlight(self.runner.first(rows, _widest(some)), some))
        for states in self._groups(() if mixed else plan.decodes):
            rows = [decodes[state.sequence.id] for state in states]
            in_flight.append(_InFlight(self.runner.steps(rows, plan.steps, _widest(states)), states))
        if not in_flight:
            assert done is not None
            in_flight.append(_Filled(done))
        for call in in_flight:
            for array in jax.tree.leaves(call[0]):
                array.copy_to_host_async()
        return in_flight

    def _groups(self, sequences: Iterable[Sequence]) -> list[list[_RequestState]]:
        """The states of sequences, those that are drawn by one call together."""
        states = [self._states[s.id] for s in sequences]
        if not self._by_kind:
            return [states] if states else []
        return [some for kind in KINDS if (some := [state for state in states if state.kind == kind])]

    def _chunks(
        self, chunks: tuple[Chunk, ...], decodes: list[tuple[int, ...]]
    ) -> tuple[list[_Call], jax.Array | None, bool]:
        """Starts prefill: the first parts of all chunks, then the second ones, as there are programs for them.

        Args:
            decodes: the rows of a step of decode, which goes along with a part that there is such a program for.

        Returns:
            (the calls whose results are wanted, what is there when the last of the others has ended, whether the step
            of decode went along).
        """
        runner, shapes = self.runner, self.runner.shapes
        parts: list[list[ChunkRow]] = []
        scored: list[_Call] = []
        done, mixed = None, False
        for chunk in chunks:
            state, place = self._states[chunk.sequence.id], chunk.start
            follows = state.slot is not None
            slot, tokens = self._slot(state, place), chunk.sequence.tokens
            row = ChunkRow(slot, place, (), state.sequence.pages, state.words, state.tables, follows)
            if state.row.prompt_logprobs is not None:
                for start in range(place, place + chunk.length, shapes.scored):
                    some = tokens[start : min(start + shapes.scored, place + chunk.length)]
                    following = tokens[start + 1 : start + 1 + len(some)]
                    found = runner.score(row._replace(start=start, tokens=some), following)
                    row = row._replace(follows=True)
                    scored.append(_Scored(found, state, start, len(some)))
                continue
            for i, length in enumerate(shapes.split(chunk.length)):
                parts += [[]] if i == len(parts) else []
                parts[i].append(row._replace(start=place, tokens=tokens[place : place + length]))
                row, place = row._replace(follows=True), place + length
        for together in parts:
            for shape, members in shapes.pack([len(part.tokens) for part in together]):
                some = [together[i] for i in members]
                if decodes and not mixed and (both := shapes.mixed_for(shape, some[0].start, len(decodes))):
                    done, mixed = runner.mixed(some[0], decodes, both), True
                else:
                    done = runner.chunk(some, shape)
        return scored, done, mixed

    def _row(self, state: _RequestState, position: int) -> tuple[int, ...]:
        """By `batch.DECODE_COLUMNS`."""
        s, place, page = state.sequence, 0, -1
        if len(s.pages) > state.pages_told:
            (page,), place = s.pages[state.pages_told :], state.pages_told  # steps of a call are at most a page
            state.pages_told += 1
        assert state.slot is not None
        return state.slot, position, s.drawn, s.max_tokens, place, page

    def _take(self, in_flight: list[_Call]) -> list[tuple[Hashable, Row]]:
        taken = []
        for call in in_flight:
            begun = self.now()
            found = jax.device_get(call[0])
            now = self.now()
            self.metrics.wait_s += now - begun
            if isinstance(call, _Scored):
                call.state.row.take_prompt(found, call.start, call.count)
            if not isinstance(call, _InFlight):
                continue
            columns, reasons = found.tokens.T.tolist(), found.reason.tolist()
            for i, state in enumerate(call.states):
                sequence, row = state.sequence, state.row
                if self._states.get(sequence.id) is not state:
                    continue  # it has ended meanwhile
                tokens, drawn_before = columns[i], sequence.replays
                for token in tokens:
                    if token >= 0:
                        self.scheduler.append(sequence, token)
                        self.metrics.output_tokens += not drawn_before
                if drawn_before and BROKEN not in tokens:  # with replays a call is of one step
                    continue
                row.take(tokens, reasons[i], now, self.runner.compile_s, found.logprobs, i)
                if row.reason is None and BROKEN in tokens:
                    self._forget(sequence)
                    row.reason = "error"
                taken.append((sequence.id, row))
                if row.reason is not None:
                    row.preemptions = sequence.preemptions
                    del self._states[sequence.id]
                    self._leave(state)
        return taken

    def _forget(self, sequence: Sequence) -> None:
        """Lets nobody find what was computed of a sequence whose logits are not finite, whoever holds its pages now."""
        pages = self.pool.take_prefix(sequence.tokens)
        self.pool.forget(list(dict.fromkeys([*pages, *sequence.pages])))
        self.pool.release(pages)

    def _sampling(self, row: Row, *, tables: bool, outputs: list[int] | None = None) -> SamplingRows:
        config, plan = self.runner.config, FULL.plan
        if not tables and not row.params.needs_bias and not row.params.needs_penalties:
            plan = dataclasses.replace(plan, bias=False, penalties=False)
        return make_rows(
            [row.params], [row.prompt], config.vocab_size, config.eos_ids, outputs=[outputs or []],
            samples=[row.sample], default_seeds=[row.seed], plan=plan,
        )  # fmt: skip

    def _slot(self, state: _RequestState, start: int) -> int:
        """Its slot of the batch, which it gets where it has none; its chunk begins at `start`."""
        if state.slot is None:
            state.slot = self._free.pop()
            state.row.start(self.now(), start)
            if state.tables:
                outputs = state.sequence.output[: state.sequence.drawn]
                rows = self._sampling(state.row, tables=True, outputs=outputs)
                self.runner.write_tables(state.slot, rows)
        state.pages_told = len(state.sequence.pages)
        return state.slot

    def _free_slot(self, state: _RequestState) -> None:
        if state.slot is not None:
            self._free.append(state.slot)
            state.slot = None

    def _leave(self, state: _RequestState) -> None:
        self.scheduler.finished(state.sequence)
        self._free_slot(state)


def _widest(states: list[_RequestState]) -> Kind:
    """The kind that does for all."""
    return max((state.kind for state in states), key=KINDS.index)
