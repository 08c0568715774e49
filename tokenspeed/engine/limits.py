"""Limits: what the steps of a scheduler are held to."""

import dataclasses

from tokenspeed.arguments import MAX_INT, integer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Of the steps of a scheduler, and of its sequences.

    Attributes:
        max_rows: sequences that run at a time.
        token_budget: tokens that a step computes; at least a page more than `max_rows` - 1, so that prefill goes on
            whatever is in decode.
        chunk: tokens of one sequence that a step prefills, a multiple of the page size; longer prompts are long ones.
        max_context: tokens of a sequence, prompt and output together.
        overtakes: how often a long prompt may be overtaken.
        align: chunks begin at multiples of it, itself a multiple of the page size; 0: of the page size.
        lengths: of chunks that take less time by the token than those in between, multiples of `align`; may be empty.
        prefill_budget: tokens of prefill in a step with sequences in decode, which wait for it, at least twice the
            shortest chunk; 0: what `token_budget` leaves.
        long_budget: as `prefill_budget`, of steps with a long prompt, which are many; 0: `prefill_budget`.
        attention_tokens: attention to so many tokens takes as long as a token's products, so that `long_budget` has
            fewer tokens the farther a chunk begins; 0: attention takes nothing.
        pass_tokens: what a chunk takes of `long_budget` beside its tokens, where attention takes something.
        replay: one that was preempted starts again from its prompt and draws its tokens again, which must be the same;
            else its tokens are prefilled.

    Raises:
        ValueError, TypeError: a value is wrong; the message names it.
    """

    max_rows: int
    token_budget: int
    chunk: int
    max_context: int
    overtakes: int
    align: int = 0
    lengths: tuple[int, ...] = ()
    prefill_budget: int = 0
    long_budget: int = 0
    attention_tokens: int = 0
    pass_tokens: int = 0
    replay: bool = False

    def __post_init__(self):
        for name in ("max_rows", "token_budget", "chunk", "max_context"):
            integer(name, getattr(self, name), 1, MAX_INT)
        others = "overtakes", "align", "prefill_budget", "long_budget", "attention_tokens", "pass_tokens"
        for name in others:
            integer(name, getattr(self, name), 0, MAX_INT)

    def align_of(self, page_size: int) -> int:
        """Tokens at whose multiples chunks begin, of a pool of that page size.

        Raises:
            ValueError: the limits do not go with it.
        """
        align = self.align or page_size
        if align % page_size:
            raise ValueError(f"align: expected a multiple of the page size, {page_size}, got {self.align}")
        least = self.max_rows - 1 + align
        if self.token_budget < least:
            raise ValueError(
                f"token_budget: expected {least} or more, the shortest chunk beside max_rows - 1, "
                f"got {self.token_budget}"
            )
        if self.chunk % align:
            what = "align" if self.align else "the page size"
            raise ValueError(f"chunk: expected a multiple of {what}, {align}, got {self.chunk}")
        for length in self.lengths:
            if length < 1 or length % align:
                raise ValueError(f"lengths: expected multiples of {align}, where chunks begin, got {length}")
        for name in ("prefill_budget", "long_budget"):
            if 0 < (budget := getattr(self, name)) < 2 * align:
                raise ValueError(
                    f"{name}: expected 0, or {2 * align} or more, two of the shortest chunks, got {budget}"
                )
        return align
