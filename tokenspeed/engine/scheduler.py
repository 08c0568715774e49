"""Scheduler: which tokens the next step computes, of sequences that share a pool of KV cache pages. No arrays here.

Continuous batching. The order of sequences is (priority, arrival), and the policy is:

- Every sequence in decode is in every step, with one token. What is left of the token budget goes to chunks of prefill:
  first of the running sequences, in order, then of waiting ones, which are admitted in order.
- Beside decodes prefill has `Limits.prefill_budget`, or `Limits.long_budget` while a long prompt is in it, whose chunk
  takes half of that, whatever its price, while others wait or are in prefill.
- A chunk starts and ends at the edge of a page, or of several (`Limits.align`), except at the end of the tokens to
  prefill; that chunk gives a token. Of `Limits.lengths` it takes the longest that the budget allows, once or more.
- A prompt that a step can take whole is not begun with what is left of one, half of its budget or less, where all other
  prompts end in it: in parts it would take longer, and could not share a program with prompts of its length. It is the
  first of the next step.
- Pages are taken as a sequence grows. Where a decode, or the first sequence in prefill, needs one and there is none,
  the last running sequence in the order is preempted, be it the one that asks: its pages are released, it waits at its
  place in the order, and later it is computed again from its tokens. So the first one never stands still. Others in
  prefill take the pages that are there, and preempt nobody.
- Admission preempts nobody: the pages of the next chunk must be there, and nobody is admitted in a step that preempts.
  One that was preempted is admitted again when there are pages for all of its tokens and one page more (or all that it
  can ever take), beside those that others in prefill will take, so that it is not computed in vain.
- Before the first long prompt in prefill (more than a chunk is left of it), waiting ones may go whose whole prompt fits
  what is left of the budget, all but a page, which the long one gets. So may those behind a long one that waits. A
  prompt is overtaken so at most `overtakes` times: then nobody goes before it, and it gets the largest chunk there is.
- The samples of a prompt wait until the first of them has computed it; whoever comes after them does not.
- Full pages that prefill wrote are registered with the pool, those of decode are not.

The host plans ahead of the device: plan, dispatch, `advance`, and the next plan, before the tokens of the first have
come and are given to `append`. Steps run in the order in which they were dispatched, so pages may be released, and
taken by others, while a step that uses them is under way.
"""

import bisect
import math
from collections.abc import Hashable
from typing import Protocol

from tokenspeed.engine.limits import Limits
from tokenspeed.engine.sequence import Chunk, Plan, Sequence, State


class Pool(Protocol):
    """What the scheduler needs of a page pool."""

    page_size: int
    pages: int

    @property
    def available(self) -> int: ...
    def take(self, count: int, /) -> list[int] | None: ...
    def peek(self, tokens: list[int], /) -> int: ...
    def take_prefix(self, tokens: list[int], /) -> list[int]: ...
    def register(self, pages: list[int], tokens: list[int], /, *, start: int = 0) -> None: ...
    def release(self, pages: list[int], /) -> None: ...


class Scheduler:
    """Sequences under way, and the pages that they hold.

    Args:
        pool: of pages; all of them are the scheduler's. limits: of a step.

    Attributes:
        waiting, running: sequences, in order; to be read only. Those whose last token is pending are running.
        steps: that were dispatched. preemptions: so far.

    Raises:
        ValueError: limits do not go with the pool's page size.
    """

    def __init__(self, pool: Pool, limits: Limits):
        self._align = limits.align_of(pool.page_size)
        self.pool, self.limits = pool, limits
        self._budget, self._most, self._shared = limits.token_budget, limits.chunk, False
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.steps = self.preemptions = 0
        self._arrivals = 0
        self._sequences: dict[Hashable, Sequence] = {}
        self._plan: Plan | None = None

    @property
    def is_empty(self) -> bool:
        return not self._sequences

    @property
    def longest_wait(self) -> int:
        """Steps since the arrival of the one that has waited longest for its first admission; 0 if there is none."""
        return max((self.steps - s.added_step for s in self.waiting if s.queue_steps is None), default=0)

    def add(self, sequence: Sequence) -> None:
        """Puts a new sequence at its place among the waiting.

        Raises:
            ValueError: it can never fit, its id is under way, or it was added before.
        """
        s, context, pages = sequence, self.limits.max_context, self._pages_for(sequence.most_keys)
        asked = f"{len(s.prompt)} + {s.max_tokens}"
        if s.id in self._sequences:
            raise ValueError(f"id: expected one that is not under way, got {s.id!r}")
        if s.arrival >= 0:
            raise ValueError(f"sequence {s.id!r}: expected one that was not added before")
        if len(s.prompt) + s.max_tokens > context:
            raise ValueError(f"prompt and max_tokens: expected at most max_context, {context}, together, got {asked}")
        if pages > self.pool.pages:
            raise ValueError(
                f"prompt and max_tokens: expected at most {self.pool.pages} pages, the whole pool, got {asked}: {pages}"
            )
        s.arrival, s.added_step = self._arrivals, self.steps
        self._arrivals += 1
        self._sequences[s.id] = s
        bisect.insort(self.waiting, s, key=lambda one: one.order)

    def plan(self, steps: int = 1) -> Plan:
        """The next step. One that is not dispatched may be dropped: what it computes is planned again.

        Args:
            steps: of decode in one go, where nothing is in prefill or waits, and the pages for them are there.
        """
        preempted = self._take_needed_pages()
        running = [s for s in self.running if not s.exhausted]
        decodes = tuple(s for s in running if not s.in_prefill)
        prefilling = [s for s in running if s.in_prefill]
        long = [s for s in prefilling if s.to_prefill > self.limits.chunk]
        far = [s for s in prefilling if s.prefill_end > self.limits.chunk]
        self._set_budget(len(decodes), far, others=len(far) < len(prefilling))
        budget, chunks = self._budget, []
        priced = bool(far and decodes and self.limits.attention_tokens)
        for s in prefilling:
            if s in long[:1] and not preempted:
                budget = self._admit_waiting(chunks, budget, long)
            there = (len(s.pages) + self.pool.available) * self.pool.page_size - s.computed
            price = 1 + s.computed / self.limits.attention_tokens if priced else 1
            affordable = int((budget - priced * self.limits.pass_tokens) / price)
            if budget >= self._align:
                affordable = max(self._align, affordable)
            length = self._chunk_length(s.to_prefill, min(affordable, there))
            if length:
                self._grow(s, s.computed + length)
                chunks.append(Chunk(s, s.computed, length))
                most = self._most if self._shared and s in far else budget
                budget -= min(budget, most, math.ceil(length * price))
        if not preempted:
            self._admit_waiting(chunks, budget)
        if chunks or preempted or self.waiting or not all([self._grow_for(s, steps) for s in decodes]):
            steps = 1
        self._plan = Plan(decodes=decodes, chunks=tuple(chunks), preempted=tuple(preempted), steps=steps)
        return self._plan

    def advance(self, plan: Plan) -> None:
        """Notes that a step has been dispatched; sequences that have ended since it was planned are left out.

        The pages of a sequence that has nothing more to compute go back.

        Raises:
            ValueError: the plan is not the last one, or was dispatched before.
        """
        if plan is not self._plan:
            raise ValueError("plan: expected the last one, once")
        self._plan = None
        self.steps += 1
        size = self.pool.page_size
        for s, start, length in plan.chunks:
            if s.state is State.RUNNING:
                s.computed += length
                if s.reuse and (full := s.computed // size) > start // size:
                    self.pool.register(s.pages[:full], s.tokens[: full * size], start=start // size)
        given = dict.fromkeys((chunk.sequence for chunk in plan.chunks), 1)
        for s in plan.decodes:
            given[s] = min(plan.steps, s.may_draw)
            if s.state is State.RUNNING:
                s.computed += given[s]
        for s, count in given.items():
            if s.state is State.RUNNING and not s.in_prefill:
                s.pending += count
                if s.exhausted:
                    self._release(s)

    def append(self, sequence: Sequence, token: int) -> None:
        """Takes a token of a step that was dispatched, in the order of steps; one of an ended sequence is dropped.

        One that was drawn before is not taken again.

        Raises:
            ValueError: no step was to give this sequence one.
        """
        if sequence.state is State.FINISHED:
            return
        if not sequence.pending:
            raise ValueError(f"sequence {sequence.id!r}: expected no token, none is pending")
        sequence.pending -= 1
        if sequence.replays:
            sequence.replays -= 1
        else:
            sequence.output.append(token)

    def finished(self, sequence: Sequence) -> None:
        """Ends a sequence, in any state, and releases its pages; nothing happens where it has ended.

        Raises:
            ValueError: it was not added.
        """
        if sequence.state is State.FINISHED:
            return
        if self._sequences.get(sequence.id) is not sequence:
            raise ValueError(f"sequence {sequence.id!r}: expected one that was added")
        (self.running if sequence.state is State.RUNNING else self.waiting).remove(sequence)
        del self._sequences[sequence.id]
        self._release(sequence)
        sequence.state = State.FINISHED

    def cancel(self, id: Hashable) -> Sequence | None:
        """Ends the sequence of this id, and returns it; None where there is none, since it may just have ended."""
        sequence = self._sequences.get(id)
        if sequence is not None:
            self.finished(sequence)
        return sequence

    def _take_needed_pages(self) -> list[Sequence]:
        """Pages for all decodes and for the first sequence in prefill; those that were preempted for them.

        One that is preempted comes after the one that asks, so nothing was taken for it.
        """
        preempted, prefilling = [], False
        for s in list(self.running):
            if s.exhausted or (s.in_prefill and prefilling):
                continue
            prefilling |= s.in_prefill
            wanted = min(s.computed + self._align, s.prefill_end) if s.in_prefill else s.computed + 1
            while s.state is State.RUNNING and not self._grow(s, wanted):
                holders = [other for other in self.running if not other.exhausted]
                if len(holders) == 1:
                    raise RuntimeError(f"sequence {s.id!r} needs a page that no sequence holds and the pool lacks")
                self._preempt(holders[-1])
                preempted.append(holders[-1])
        return preempted

    def _admit_waiting(self, chunks: list[Chunk], budget: int, long: list[Sequence] | None = None) -> int:
        """Adds the first chunks of those that can be admitted; what is left of the budget.

        Args:
            long: prompts in prefill, before whose chunks they go; None where all in prefill have theirs.
        """
        limits, over = self.limits, list(long or ())
        for s in list(self.waiting):
            room = budget - (self._align if long else 0)
            if room <= 0 or not self.pool.available or len(self.running) == limits.max_rows:
                break
            if s.held:
                continue
            if s.pending or any(other.overtaken >= limits.overtakes for other in over):
                break
            tokens = self._prefilled(s)
            left = len(tokens) - (self.pool.peek(tokens) if s.reuse else 0)
            if long and left <= budget - self._most:
                break  # it fits beside the chunk of a long one, and need not go before it
            length = self._chunk_length(left, room)
            if not long and length < left and self._fits_the_next(left, room, chunks):
                break
            if length and not (over and length < left) and self._admit(s, left, length):
                chunks.append(Chunk(s, s.computed, length))
                budget -= length
                for other in over:
                    other.overtaken += 1
            elif left > limits.chunk:
                over.append(s)
            else:
                break
        return budget

    def _fits_the_next(self, left: int, room: int, chunks: list[Chunk]) -> bool:
        """Whether `room` is little to begin a prompt with, and the next step, in which it is first, takes all of it."""
        little, whole = room <= self._budget // 2, left <= min(self._most, self._budget)
        return little and whole and bool(chunks) and all(chunk.final for chunk in chunks)

    def _admit(self, s: Sequence, left: int, length: int) -> bool:
        """Whether it is: it takes what is known of its tokens, and pages for `length` of the `left` others."""
        tokens = self._prefilled(s)
        known = len(tokens) - left
        wanted = self._pages_for(known + length)
        there = wanted
        if s.preemptions:
            owed = sum(self._pages_for(p.prefill_end) - len(p.pages) for p in self.running if p.in_prefill)
            there = owed + min(self._pages_for(s.length) + 1, self._pages_for(s.most_keys))
        if self.pool.available < there - known // self.pool.page_size:
            return False
        pages = self.pool.take_prefix(tokens) if known else []
        # Of the known pages, those that nobody uses were available and are not any more.
        if self.pool.available < there - len(pages):
            self.pool.release(pages)
            return False
        s.pages, s.computed, s.prefill_end = pages, known, len(tokens)
        s.replays = s.length - len(tokens)
        self._grow(s, known + length)
        s.state = State.RUNNING
        if s.queue_steps is None:
            s.queue_steps = self.steps - s.added_step
        self.waiting.remove(s)
        bisect.insort(self.running, s, key=lambda one: one.order)
        return True

    def _preempt(self, s: Sequence) -> None:
        """What prefill wrote of it has been registered, so it may be found when it comes back."""
        self._release(s)
        s.computed = s.prefill_end = 0
        s.replays = min(s.replays, s.pending)  # of those under way
        s.state = State.WAITING
        s.preemptions += 1
        self.preemptions += 1
        self.running.remove(s)
        bisect.insort(self.waiting, s, key=lambda one: one.order)

    def _release(self, s: Sequence) -> None:
        self.pool.release(s.pages)
        s.pages = []

    def _grow_for(self, s: Sequence, steps: int) -> bool:
        """Takes the pages that it lacks for so many steps of decode; False where they are not there."""
        return self._grow(s, s.computed + min(steps, s.may_draw))

    def _grow(self, s: Sequence, tokens: int) -> bool:
        """Takes the pages that it lacks for so many tokens; False where they are not there."""
        lacking = self._pages_for(tokens) - len(s.pages)
        taken = self.pool.take(lacking) if lacking > 0 else []
        s.pages += taken or []
        return taken is not None

    def _chunk_length(self, left: int, budget: int) -> int:
        """All that is left, or up to where a chunk may begin, within the budget and the limit of a chunk."""
        most = min(budget, self._most)
        if left <= most:
            return left
        length = max((n for n in self.limits.lengths if n <= most), default=self._align)
        return most // length * length

    def _set_budget(self, decodes: int, long: list[Sequence], *, others: bool) -> None:
        """Tokens that prefill may have beside so many of decode, and the most that a chunk may.

        Args:
            long: prompts in prefill, whatever is left of them. others: whether short ones are in prefill, too.
        """
        limits = self.limits
        budget, self._most, self._shared = limits.token_budget - decodes, limits.chunk, False
        first = bool(self.waiting) and len(self.waiting[0].prompt) > limits.chunk
        beside = (limits.long_budget if long or first else 0) or limits.prefill_budget
        if decodes and beside:
            budget = min(budget, beside)
            self._shared = bool(long) and (others or (bool(self.waiting) and len(self.running) < limits.max_rows))
            half = max(self._align, budget // 2 // self._align * self._align)
            self._most = min(limits.chunk, half if self._shared else budget)  # short ones fit beside a long one
        self._budget = budget

    def _prefilled(self, s: Sequence) -> list[int]:
        """The tokens that prefill is to compute of a waiting sequence."""
        return s.prompt if self.limits.replay else s.tokens

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.pool.page_size)
