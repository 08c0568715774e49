"""The scheduler under random requests, with tokens that come late: what must hold whatever happens."""

import collections

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.tokenspeed.engine.paging import Device, FakePool, limits, token_of
from tokenspeed.engine.scheduler import Scheduler
from tokenspeed.engine.sequence import Sequence, State

QUICK = settings(max_examples=30, stateful_step_count=40)
LONG = settings(max_examples=100, stateful_step_count=50)  # 5,000 operations

LENGTH = st.integers(1, 4) | st.integers(20, 40) | st.integers(1, 40)
REQUEST = st.tuples(LENGTH, st.integers(1, 24), st.integers(0, 2), st.integers(0, 50), st.sampled_from([1, 1, 1, 2, 3]))
"""The prompt's length, max_tokens, priority, the prompt's first token, and how many samples it has."""


class Requests(RuleBasedStateMachine):
    """Requests come, are cancelled and stop early, and steps run; `FakePool` and `Device` check pages and keys."""

    @initialize(
        size=st.sampled_from([1, 2, 4]),
        pages=st.integers(4, 24),
        rows=st.integers(1, 5),
        spare=st.integers(0, 12),
        chunk=st.integers(1, 4),
        overtakes=st.integers(0, 3),
        reuse=st.booleans(),
        align=st.sampled_from([0, 0, 1, 2]),
        replay=st.booleans(),
        mixed=st.sampled_from([0, 0, 2, 3, 7]),
        long=st.sampled_from([0, 2, 3]),
        lengths=st.sampled_from([(), (1,), (2, 3)]),
        attention=st.sampled_from([0, 5, 20]),
    )
    def begin(
        self, size, pages, rows, spare, chunk, overtakes, reuse, align, replay, mixed, long, lengths, attention
    ):  # fmt: skip
        # What is known differs from prompt to prompt, and is the same whenever it is asked.
        known = lambda tokens: sum(tokens[:3]) % 4 if reuse else 0
        self.pool = FakePool(pages, size, known, align or 1)
        self.limits = limits(
            max_rows=rows, token_budget=rows - 1 + (align or 1) * size + spare, chunk=chunk * (align or 1) * size,
            max_context=60, overtakes=overtakes, align=align * size, replay=replay,
            prefill_budget=mixed * (align or 1) * size, long_budget=long * (align or 1) * size,
            lengths=tuple(n * (align or 1) * size for n in lengths), attention_tokens=attention,
        )  # fmt: skip
        self.align = (align or 1) * size
        self.scheduler = Scheduler(self.pool, self.limits)
        self.device = Device(self.scheduler, self.pool)
        self.added: list[Sequence] = []
        self.overtaken: collections.Counter[Sequence] = collections.Counter()

    @property
    def alive(self):
        return [s for s in self.added if s.state is not State.FINISHED]

    @rule(requests=st.lists(REQUEST, min_size=1, max_size=4))
    def add(self, requests):
        for length, max_tokens, priority, first, samples in requests:
            prompt, leader = [first, *range(1, length)], None
            for _ in range(samples):
                s = Sequence(id=len(self.added), prompt=prompt, max_tokens=max_tokens, priority=priority, leader=leader)
                fits = length + max_tokens <= 60 and length + max_tokens - 1 <= self.pool.pages * self.pool.page_size
                try:
                    self.scheduler.add(s)
                except ValueError:
                    assert not fits
                else:
                    assert fits
                    self.added.append(s)
                    leader = leader or s

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data):
        s = data.draw(st.sampled_from(self.alive))
        assert self.scheduler.cancel(s.id) is s

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), count=st.integers(1, 5))
    def stop_early(self, data, count):
        s = data.draw(st.sampled_from(self.alive))
        self.device.stops[s] = len(s.output) + count

    @rule()
    def deliver(self):
        self.device.deliver()
        self.check()

    @rule(behind=st.integers(0, 1), count=st.integers(1, 4))
    def steps(self, behind, count):
        for _ in range(count):
            self.step(behind)

    def step(self, behind):
        before = {s: list(s.output) for s in self.alive}
        # The first of those that run, and how much it must compute.
        running = [s for s in self.scheduler.running if not s.exhausted]
        prefilling = {s: s.to_prefill for s in running if s.in_prefill}
        waiting = list(self.scheduler.waiting)
        pages = self.pool.available

        plan = self.scheduler.plan()

        chunks = {s: length for s, _, length in plan.chunks}
        planned = [*plan.decodes, *chunks]
        assert len(set(planned)) == len(planned)
        assert not {*planned} & {*plan.preempted}
        assert plan.tokens <= self.limits.token_budget
        if plan.decodes and self.limits.prefill_budget:
            most = max(self.limits.prefill_budget, self.limits.long_budget)
            assert sum(length for *_, length in plan.chunks) <= most
        assert all(s.length - s.computed == 1 and not s.in_prefill for s in plan.decodes)
        assert {*plan.decodes} == {s for s in self.scheduler.running if not s.exhausted and not s.in_prefill}
        for s, start, length in plan.chunks:
            assert 0 < length <= self.limits.chunk and s.state is State.RUNNING
            assert start % self.align == 0
            assert start + length == s.prefill_end or length % self.align == 0
            leader = s.leader
            assert start or leader is None or leader.state is State.FINISHED or leader not in chunks
        for s in running[:1]:
            assert s in plan.decodes or chunks[s] >= min(s.to_prefill, self.align)
        first = next((s for s in self.scheduler.running if s in prefilling), None)
        if first is not None and first.pages:
            assert chunks[first] >= min(prefilling[first], self.align)
        self.check_preemption(plan, running)
        self.check_order(plan, chunks, waiting, prefilling, pages)

        self.device.run(plan)
        self.device.deliver(but=behind)
        self.check()
        for s, output in before.items():
            assert s.output[: len(output)] == output

    def check_preemption(self, plan, running):
        """Of those that ran, the last ones have been preempted, and then nobody was admitted."""
        if plan.preempted:
            assert {*running[len(running) - len(plan.preempted) :]} == {*plan.preempted}
            assert not {s for s, *_ in plan.chunks} - {*running}
        assert all(s in self.scheduler.waiting and not s.pages for s in plan.preempted)

    def check_order(self, plan, chunks, waiting, prefilling, pages):
        """Who was admitted, in order; who went before a long prompt, and how often."""
        long = [s for s, left in prefilling.items() if left > self.limits.chunk and s not in plan.preempted]
        before_long = []
        for s in chunks:
            if s in long:
                break
            before_long.append(s)
        for s in [s for s in waiting if s in chunks]:
            if s.preemptions:
                needed = min(len(s.tokens) // self.pool.page_size + 1, -(-s.most_keys // self.pool.page_size))
                assert pages >= needed and not s.pending
            passed = [o for o in waiting if o.order < s.order and o not in chunks and not o.held]
            if s in before_long and long and any(other in chunks for other in long):
                passed += long
            for other in passed:
                tokens = other.prompt if self.limits.replay else other.tokens
                assert other in long or len(tokens) - self.pool.peek(tokens) > self.limits.chunk
                assert s.computed + chunks[s] == s.prefill_end  # the whole of it
                self.overtaken[other] += 1
                assert self.overtaken[other] <= self.limits.overtakes

    def check(self):
        held = [page for s in self.added for page in s.pages]
        assert len(held) == len(set(held)) and set(held) == self.pool.taken
        scheduler = self.scheduler
        assert len(scheduler.running) <= self.limits.max_rows
        assert {*scheduler.running, *scheduler.waiting} == {*self.alive}
        for queue, state in ((scheduler.running, State.RUNNING), (scheduler.waiting, State.WAITING)):
            assert [s.order for s in queue] == sorted(s.order for s in queue)
            assert all(s.state is state for s in queue)
        for s in scheduler.waiting:
            assert not s.pages and s.computed == 0
        for s in scheduler.running:
            assert s.exhausted or s.computed <= len(s.pages) * self.pool.page_size
        for s in self.added:
            assert s.output == [token_of(s, i) for i in range(len(s.output))]
            assert s.drawn <= s.max_tokens and len(s.output) <= s.max_tokens
            assert s.replays == 0 or (self.limits.replay and s.preemptions)
        assert scheduler.preemptions == sum(s.preemptions for s in self.added)

    def teardown(self):
        """When nothing new comes, all ends: while one is the first of those that run, each step gives it a token."""
        if not hasattr(self, "scheduler"):
            return
        bound = (len(self.alive) + 1) * (sum(s.most_keys + 4 for s in self.alive) + 1)
        stops = {s: min(s.max_tokens, self.device.stops.get(s, s.max_tokens)) for s in self.alive}
        for _ in range(bound):
            if self.scheduler.is_empty:
                break
            self.step(behind=1)
        self.device.deliver()
        assert self.scheduler.is_empty and self.pool.available == self.pool.pages
        assert all(len(s.output) == stop for s, stop in stops.items())


class TestQuick(Requests.TestCase):
    settings = QUICK


@pytest.mark.slow
class TestLong(Requests.TestCase):
    settings = LONG
