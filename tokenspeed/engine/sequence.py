"""Sequence: one sample of a prompt as the scheduler sees it. Plan: what a step computes of several."""

import dataclasses
import enum
from collections.abc import Hashable
from typing import NamedTuple

from tokenspeed.arguments import MAX_INT, integer, integers


class State(enum.Enum):
    """Where a sequence is. One that was preempted is WAITING again, with its output kept."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


@dataclasses.dataclass(kw_only=True, eq=False)
class Sequence:
    """A prompt, what was generated after it, and how far its keys are in the cache.

    All but the first six attributes are the scheduler's to change.

    Attributes:
        id: unlike that of any other sequence under way.
        prompt: token ids, at least one; stored as a list of its own.
        max_tokens: tokens to generate at most, 1 or more.
        priority: lower runs first.
        leader: a sequence of the same prompt that was added before, or None: this one waits until the leader's prompt
            has been computed, and then finds its pages.
        reuse: whether it takes pages of others that began alike, and they its pages.
        arrival: number of its arrival, given by the scheduler; -1 before.
        output: token ids that have been generated and have arrived on the host.
        pending: how many more the steps that were dispatched will give.
        pages: of the KV cache, in order.
        computed: how many of its tokens have their keys in the cache, once all that was dispatched has run.
        prefill_end: prefill takes the tokens before this place; decode those from it on.
        replays: how many of its first tokens are still to be drawn again, after it was preempted.
        state: see `State`.
        preemptions: how often it lost its pages.
        overtaken: how often a shorter prompt went before it.
        added_step: steps that the scheduler had dispatched when it was added.
        queue_steps: steps between that and its first admission; None before.

    Raises:
        ValueError, TypeError: a value is wrong; the message names it.
    """

    id: Hashable
    prompt: list[int]
    max_tokens: int
    priority: int = 0
    leader: "Sequence | None" = None
    reuse: bool = True
    arrival: int = dataclasses.field(default=-1, init=False)
    output: list[int] = dataclasses.field(default_factory=list, init=False)
    pending: int = dataclasses.field(default=0, init=False)
    pages: list[int] = dataclasses.field(default_factory=list, init=False)
    computed: int = dataclasses.field(default=0, init=False)
    prefill_end: int = dataclasses.field(default=0, init=False)
    replays: int = dataclasses.field(default=0, init=False)
    state: State = dataclasses.field(default=State.WAITING, init=False)
    preemptions: int = dataclasses.field(default=0, init=False)
    overtaken: int = dataclasses.field(default=0, init=False)
    added_step: int = dataclasses.field(default=0, init=False)
    queue_steps: int | None = dataclasses.field(default=None, init=False)

    def __post_init__(self):
        self.prompt = integers("prompt", self.prompt, 0, MAX_INT)
        if not self.prompt:
            raise ValueError("prompt: expected at least one token id, got none")
        self.max_tokens = integer("max_tokens", self.max_tokens, 1, MAX_INT)
        self.priority = integer("priority", self.priority, -MAX_INT, MAX_INT)

    @property
    def tokens(self) -> list[int]:
        """Those that are known: the prompt and the output."""
        return self.prompt + self.output

    @property
    def length(self) -> int:
        """Tokens, with those that are pending, but for those that were drawn before and are to be drawn again."""
        return len(self.prompt) + self.drawn

    @property
    def drawn(self) -> int:
        """Tokens that it has drawn since it was last admitted, and those of before that are not drawn again."""
        return len(self.output) - self.replays + self.pending

    @property
    def to_prefill(self) -> int:
        """Tokens that prefill is still to compute."""
        return self.prefill_end - self.computed

    @property
    def most_keys(self) -> int:
        """Keys that it can have in the cache at most: the last token that it may draw needs none."""
        return len(self.prompt) + self.max_tokens - 1

    @property
    def held(self) -> bool:
        """Whether it waits for its leader."""
        leader = self.leader
        return leader is not None and (
            leader.state is State.WAITING or (leader.state is State.RUNNING and leader.in_prefill)
        )

    @property
    def in_prefill(self) -> bool:
        """Whether it takes chunks, and not steps of decode, while it runs."""
        return self.computed < self.prefill_end

    @property
    def may_draw(self) -> int:
        """Tokens that `max_tokens` still allows to dispatch."""
        return self.max_tokens - self.drawn

    @property
    def exhausted(self) -> bool:
        """Whether all tokens that `max_tokens` allows have been dispatched: there is nothing more to plan."""
        return self.may_draw <= 0

    @property
    def order(self) -> tuple[int, int]:
        """What sequences are ordered by: the lower, the earlier."""
        return self.priority, self.arrival


class Chunk(NamedTuple):
    """A part of a sequence's tokens, `length` from `start` on, to be put into the cache."""

    sequence: Sequence
    start: int
    length: int

    @property
    def final(self) -> bool:
        """Whether a token is drawn from its end. To be asked before the next plan."""
        return self.start + self.length == self.sequence.prefill_end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A step: `decodes` compute a token and draw the next, `steps` times; `preempted` have lost their pages since the
    last."""

    decodes: tuple[Sequence, ...]
    chunks: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...]
    steps: int = 1

    @property
    def tokens(self) -> int:
        """How many it computes; 0 where there is nothing to dispatch."""
        return len(self.decodes) * self.steps + sum(chunk.length for chunk in self.chunks)
