"""A page pool and a device to test the scheduler with: both complain where something is used that must not be."""

import collections
from collections.abc import Callable

from tokenspeed.engine.limits import Limits
from tokenspeed.engine.scheduler import Plan, Scheduler
from tokenspeed.engine.sequence import Sequence, State

EARLIER = "a sequence that has ended"
"""Whose keys are in the pages of a known prefix."""


class FakePool:
    """Pages with one owner each. `known` says how many pages of these tokens are to be taken for a known prefix."""

    def __init__(
        self, pages: int, page_size: int, known: Callable[[list[int]], int] = lambda tokens: 0, together: int = 1
    ):
        self.pages, self.page_size, self.known, self.together = pages, page_size, known, together
        self.free, self.taken = list(range(pages)), set()
        self.slots: dict[tuple[int, int], tuple] = {}  # (page, slot) -> whose key of which position
        self.prefixes = 0  # how often a known prefix was taken
        self.registered: list[tuple[list[int], list[int], int]] = []

    @property
    def available(self) -> int:
        return len(self.free)

    def take(self, count: int) -> list[int] | None:
        assert count > 0
        if count > len(self.free):
            return None
        pages = [self.free.pop(0) for _ in range(count)]
        assert not self.taken & set(pages)
        self.taken |= set(pages)
        return pages

    def _found(self, tokens):
        found = min(self.known(tokens), (len(tokens) - 1) // self.page_size, len(self.free))
        return found - found % self.together

    def peek(self, tokens: list[int]) -> int:
        return self._found(tokens) * self.page_size

    def take_prefix(self, tokens: list[int]) -> list[int]:
        self.prefixes += 1
        found = self._found(tokens)
        pages = (found and self.take(found)) or []
        for i, page in enumerate(pages):
            for slot in range(self.page_size):
                self.slots[page, slot] = EARLIER, i * self.page_size + slot
        return pages

    def register(self, pages: list[int], tokens: list[int], *, start: int = 0) -> None:
        assert len(tokens) == len(pages) * self.page_size and 0 <= start < len(pages)
        assert self.taken >= set(pages)
        self.registered.append((list(pages), list(tokens), start))

    def release(self, pages: list[int]) -> None:
        assert len(set(pages)) == len(pages) and self.taken >= set(pages)
        self.taken -= set(pages)
        self.free += pages


def token_of(sequence: Sequence, index: int) -> int:
    """What the fake model draws at each place of the output."""
    return hash((sequence.id, index)) % 1000


class Device:
    """Runs plans in order and gives the tokens later; checks that each key that is needed is where it should be.

    Pages may be released, and be others', while a step that uses them runs: steps run one after another.
    """

    def __init__(self, scheduler: Scheduler, pool: FakePool):
        self.scheduler, self.pool = scheduler, pool
        self.drawn: collections.Counter[Sequence] = collections.Counter()
        self.under_way: collections.deque[list[tuple[Sequence, int]]] = collections.deque()
        self.stops: dict[Sequence, int] = {}  # end it when it has so many tokens

    def run(self, plan: Plan) -> None:
        tokens = []
        for s in plan.decodes:
            self._compute(s, s.computed, 1)
            tokens.append(self._draw(s, s.computed + 1))
        for s, start, length in plan.chunks:
            assert start == s.computed
            self._compute(s, start, length)
            if start + length == s.prefill_end:
                tokens.append(self._draw(s, start + length))
        self.scheduler.advance(plan)
        self.under_way.append(tokens)

    def _compute(self, s, start, length):
        """Writes keys, and looks for all before them."""
        size = self.pool.page_size
        assert len(s.pages) * size >= start + length
        for position in range(start + length):
            place = s.pages[position // size], position % size
            if position >= start:
                self.pool.slots[place] = s, position
            assert self.pool.slots[place] in ((s, position), (EARLIER, position))

    def _draw(self, s, end):
        """The token behind position end - 1: each is drawn once, in order, and again only where that is the policy."""
        index = end - len(s.prompt)
        assert index == s.drawn < s.max_tokens
        assert index == self.drawn[s] or (self.scheduler.limits.replay and s.preemptions)
        self.drawn[s] = max(self.drawn[s], index + 1)
        return s, token_of(s, index)

    def deliver(self, but: int = 0) -> None:
        """Gives the tokens of all steps to the scheduler but those of the last ones; ends what is complete."""
        while len(self.under_way) > but:
            for s, token in self.under_way.popleft():
                before = list(s.output)
                self.scheduler.append(s, token)
                if s.state is State.FINISHED:
                    assert s.output == before
                elif len(s.output) >= min(s.max_tokens, self.stops.get(s, s.max_tokens)):
                    self.scheduler.finished(s)

    def step(self, behind: int = 0) -> Plan:
        """Plans and runs a step; the tokens of all but the last `behind` are delivered afterwards."""
        plan = self.scheduler.plan()
        self.run(plan)
        self.deliver(but=behind)
        return plan


def limits(**changed) -> Limits:
    return Limits(**(dict(max_rows=4, token_budget=16, chunk=8, max_context=64, overtakes=2) | changed))


def make(pages: int = 100, page_size: int = 4, known=lambda tokens: 0, **changed) -> tuple[Scheduler, Device]:
    pool = FakePool(pages, page_size, known)
    scheduler = Scheduler(pool, limits(**changed))
    return scheduler, Device(scheduler, pool)


def put(scheduler: Scheduler, id, prompt: int, max_tokens: int = 4, priority: int = 0) -> Sequence:
    """Adds a sequence with a prompt of that many tokens."""
    s = Sequence(id=id, prompt=[1 + i % 7 for i in range(prompt)], max_tokens=max_tokens, priority=priority)
    scheduler.add(s)
    return s


def ids(sequences: list[Sequence]) -> list:
    return [s.id for s in sequences]


def parts(plan: Plan) -> list[tuple]:
    """(id, start, length) of its chunks."""
    return [(s.id, start, length) for s, start, length in plan.chunks]
