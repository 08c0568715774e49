"""Engine: requests in, tokens out, step by step; the host is one step ahead of the tokens that it looks at."""

import time
from collections import deque
from collections.abc import Hashable

import jax
from jax.experimental.pallas import next_power_of_2

from tokenspeed.engine.dispatch import Call, Dispatcher, InFlight, Scored
from tokenspeed.engine.generation import BROKEN
from tokenspeed.engine.kinds import kind_of
from tokenspeed.engine.limits import Limits
from tokenspeed.engine.metrics import Metrics
from tokenspeed.engine.pace import Pace
from tokenspeed.engine.page_pool import PagePool
from tokenspeed.engine.reading import Reading
from tokenspeed.engine.request_state import RequestState, sampling_rows, widest
from tokenspeed.engine.row import Row
from tokenspeed.engine.runner import Program, Runner
from tokenspeed.engine.scheduler import Scheduler
from tokenspeed.engine.sequence import Sequence
from tokenspeed.sampling.state import make_plan


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
        self.runner, self._steps = runner, steps
        together = max(1, limits.align // sizes.page_size)
        self.pool = PagePool(sizes.pages, sizes.page_size, reuse=reuse, together=together)
        self.scheduler = Scheduler(self.pool, limits)
        self.metrics, self._pace = Metrics(), Pace()
        self._reading = Reading(self.metrics, runner.config, runner.dtype, runner.kv)
        self._states: dict[Hashable, RequestState] = {}
        self._dispatcher = Dispatcher(runner, self._states, by_kind=by_kind)
        self._in_flight: deque[list[Call]] = deque()
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
        kind, words = kind_of(plan, params.logprobs), sampling_rows(config, row, tables=False).words[0]
        other = None if leader is None else self._states.get(leader)
        if params.max_tokens is None:  # up to the end of the context, or of the pool
            row.max_tokens = max(1, min(row.max_tokens, self.pool.pages * self.pool.page_size + 1 - len(row.prompt)))
        sequence = Sequence(
            id=id, prompt=row.prompt, max_tokens=row.max_tokens, priority=priority, leader=other and other.sequence,
            reuse=row.prompt_logprobs is None,
        )  # fmt: skip
        self.scheduler.add(sequence)
        row.begin(self.now(), self.runner.compile_s)
        self._states[id] = RequestState(sequence, row, kind, words, plan.bias or plan.penalties)

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
            self._dispatcher.free_slot(self._states[sequence.id])
        if plan.tokens:
            self._pace.starting(self.now())
            self._reading.begun(plan, self.now())
            self._in_flight.append(self._dispatcher.start(plan, self.now()))
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
        return self.runner.shapes.decode_for(widest(running), len(running), self._steps)[2]

    def _is_waited_for(self) -> bool:
        """Whether the first step under way has not ended, however long it was taken to last."""
        return bool(self._in_flight) and not all(
            array.is_ready() for call in self._in_flight[0] for array in jax.tree.leaves(call[0])
        )

    def _take(self, in_flight: list[Call]) -> list[tuple[Hashable, Row]]:
        taken = []
        for call in in_flight:
            begun = self.now()
            found = jax.device_get(call[0])
            now = self.now()
            self.metrics.wait_s += now - begun
            if isinstance(call, Scored):
                call.state.row.take_prompt(found, call.start, call.count)
            if not isinstance(call, InFlight):
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

    def _leave(self, state: RequestState) -> None:
        self.scheduler.finished(state.sequence)
        self._dispatcher.free_slot(state)
