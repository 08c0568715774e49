"""Dispatch: the calls that a plan takes, started one after the other, and whose tokens each draws."""

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import jax

from tokenspeed.engine.generation import Drawn
from tokenspeed.engine.kinds import KINDS
from tokenspeed.engine.request_state import RequestState, sampling_rows, widest
from tokenspeed.engine.runner import ChunkRow, Runner
from tokenspeed.engine.sequence import Chunk, Plan, Sequence
from tokenspeed.sampling.sample import Logprobs


class InFlight(NamedTuple):
    """A call under way, and whose tokens it draws."""

    drawn: Drawn
    states: list[RequestState]


class Scored(NamedTuple):
    """A call under way that says how likely the tokens behind `count` of a prompt's are, from `start` on."""

    found: Logprobs
    state: RequestState
    start: int
    count: int


class Filled(NamedTuple):
    """A call under way that puts tokens into the cache, of which nothing else tells that it has ended."""

    done: jax.Array


Call = InFlight | Scored | Filled


class Dispatcher:
    """Starts plans on a runner, and gives sequences their slots of its batch.

    Args:
        runner: of the model. states: of the samples under way, by id.
        by_kind: each kind of drawing has a call of its own in a step; else the widest does for all.
    """

    def __init__(self, runner: Runner, states: Mapping[Hashable, RequestState], *, by_kind: bool):
        self._runner, self._states, self._by_kind = runner, states, by_kind
        self._free = list(reversed(range(runner.sizes.slots)))

    def start(self, plan: Plan, now: float) -> list[Call]:
        """Starts a plan that computes something, before the scheduler advances.

        Returns:
            The calls whose results are wanted, at least one, which are being copied to the host.
        """
        calls, done = self._chunks(plan.chunks, now)
        for states in self._groups(chunk.sequence for chunk in plan.chunks if chunk.final):
            while states:
                _, count = self._runner.shapes.first_for(widest(states), len(states))
                some, states = states[:count], states[count:]
                rows = [self._row(state, state.sequence.prefill_end - 1) for state in some]
                calls.append(InFlight(self._runner.first(rows, widest(some)), some))
        for states in self._groups(plan.decodes):
            rows = [self._row(state, state.sequence.computed) for state in states]
            calls.append(InFlight(self._runner.steps(rows, plan.steps, widest(states)), states))
        if not calls:
            assert done is not None
            calls.append(Filled(done))
        for call in calls:
            for array in jax.tree.leaves(call[0]):
                array.copy_to_host_async()
        return calls

    def free_slot(self, state: RequestState) -> None:
        """Where it has one."""
        if state.slot is not None:
            self._free.append(state.slot)
            state.slot = None

    def _groups(self, sequences: Iterable[Sequence]) -> list[list[RequestState]]:
        """The states of sequences, those that are drawn by one call together."""
        states = [self._states[s.id] for s in sequences]
        if not self._by_kind:
            return [states] if states else []
        return [some for kind in KINDS if (some := [state for state in states if state.kind == kind])]

    def _chunks(self, chunks: tuple[Chunk, ...], now: float) -> tuple[list[Call], jax.Array | None]:
        """Starts prefill: the first parts of all chunks, then the second ones, as there are programs for them.

        Returns:
            (the calls whose results are wanted, what is there when the last of the others has ended).
        """
        runner, shapes = self._runner, self._runner.shapes
        parts: list[list[ChunkRow]] = []
        scored: list[Call] = []
        done = None
        for chunk in chunks:
            state, place = self._states[chunk.sequence.id], chunk.start
            follows = state.slot is not None
            slot, tokens = self._slot(state, place, now), chunk.sequence.tokens
            row = ChunkRow(slot, place, (), state.sequence.pages, state.words, state.tables, follows)
            if state.row.prompt_logprobs is not None:
                for start in range(place, place + chunk.length, shapes.scored):
                    some = tokens[start : min(start + shapes.scored, place + chunk.length)]
                    following = tokens[start + 1 : start + 1 + len(some)]
                    found = runner.score(row._replace(start=start, tokens=some), following)
                    row = row._replace(follows=True)
                    scored.append(Scored(found, state, start, len(some)))
                continue
            for i, length in enumerate(shapes.split(chunk.length)):
                parts += [[]] if i == len(parts) else []
                parts[i].append(row._replace(start=place, tokens=tokens[place : place + length]))
                row, place = row._replace(follows=True), place + length
        for together in parts:
            for shape, members in shapes.pack([len(part.tokens) for part in together]):
                done = runner.chunk([together[i] for i in members], shape)
        return scored, done

    def _row(self, state: RequestState, position: int) -> tuple[int, ...]:
        """By `batch.DECODE_COLUMNS`."""
        s, place, page = state.sequence, 0, -1
        if len(s.pages) > state.pages_told:
            (page,), place = s.pages[state.pages_told :], state.pages_told  # steps of a call are at most a page
            state.pages_told += 1
        assert state.slot is not None
        return state.slot, position, s.drawn, s.max_tokens, place, page

    def _slot(self, state: RequestState, start: int, now: float) -> int:
        """Its slot of the batch, which it gets where it has none; its chunk begins at `start`."""
        if state.slot is None:
            state.slot = self._free.pop()
            state.row.start(now, start)
            if state.tables:
                outputs = state.sequence.output[: state.sequence.drawn]
                rows = sampling_rows(self._runner.config, state.row, tables=True, outputs=outputs)
                self._runner.write_tables(state.slot, rows)
        state.pages_told = len(state.sequence.pages)
        return state.slot
