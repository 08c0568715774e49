"""Shapes: the sizes that programs are compiled for, and which of them a step's work takes."""

import dataclasses
import functools
from collections.abc import Sequence

from jax.experimental.pallas import next_power_of_2

from tokenspeed.engine.generation import FEW_TOKENS
from tokenspeed.engine.kinds import DRAWN, FULL, GREEDY, KINDS, Kind

FEWEST_TOKENS = 16
"""Of a program of prefill: shorter chunks are padded."""
PASS_TOKENS = 100
"""So many tokens more are computed in the time that a program of prefill takes beyond that of its tokens, which is for
a pass over the weights."""
SCORED_TOKENS = 256
"""Whose logits there is room for: 131 MB of a vocabulary of 128 thousand."""
COMPILED_TOKENS = 512
"""The same where a program more is one to be compiled."""
CROWD = 4
"""Long prompts that a program takes at once, where a step has tokens for as many: larger products take less by the
token, up to here."""
FAR = 16384
"""Positions behind a chunk up to which its attention gathers no more; beyond, as many as a sequence may have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Of programs.

    Attributes:
        decode: (kind, rows, steps in one call); of every kind the most rows, and 1 step for each kind and rows.
        first: (kind, rows) of what draws the tokens that follow prompts.
        chunks: (sequences, tokens of each) of prefill; for each number of tokens also 1 sequence.
        behind: bounds of where chunks begin, ascending: the last is what a sequence may have.
        scored: tokens of the program of prefill that says how likely they are.
        pass_tokens: what a program of prefill takes beside its tokens, in tokens of a large one.
    """

    decode: tuple[tuple[Kind, int, int], ...]
    first: tuple[tuple[Kind, int], ...]
    chunks: tuple[tuple[int, int], ...]
    behind: tuple[int, ...]
    scored: int
    pass_tokens: int = PASS_TOKENS

    def decode_for(self, kind: Kind, rows: int, steps: int) -> tuple[Kind, int, int]:
        """A program for so many rows, of at most so many steps."""
        kind, count = _least({(k, n) for k, n, _ in self.decode}, kind, rows)
        return kind, count, max(most for k, n, most in self.decode if (k, n) == (kind, count) and most <= max(steps, 1))

    def first_for(self, kind: Kind, rows: int) -> tuple[Kind, int]:
        """A program for so many rows, or for as many of them as one takes."""
        return _least(self.first, kind, min(rows, max(count for _, count in self.first)))

    def behind_for(self, start: int) -> int:
        return least(self.behind, start)

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of a sequence that a program of prefill takes, ascending."""
        return tuple(sorted({tokens for _, tokens in self.chunks}))

    def split(self, length: int) -> list[int]:
        """A chunk as parts, one after the other, each of at most a program's length, in the least time."""
        return _split(length, self.lengths, self.pass_tokens)

    def padded(self, length: int) -> int:
        """Tokens that programs compute for a chunk."""
        return sum(least(self.lengths, part) for part in self.split(length))

    def pack(self, lengths: Sequence[int]) -> list[tuple[tuple[int, int], list[int]]]:
        """Divides chunks of different sequences among programs.

        Args:
            lengths: tokens of each chunk, at most a program's.

        Returns:
            (the shape of a program, the indices of its chunks), every chunk once.
        """
        alike: dict[int, list[int]] = {}
        for i, length in enumerate(lengths):
            alike.setdefault(least(self.lengths, length), []).append(i)
        calls = []
        for tokens, members in alike.items():
            counts = sorted(count for count, size in self.chunks if size == tokens)
            while members:
                time = lambda n: max(n * tokens, FEW_TOKENS) + self.pass_tokens  # of so few as long as of less
                count = min(counts, key=lambda n: (time(n) / min(n, len(members)), -n))
                calls.append(((count, tokens), members[:count]))
                members = members[count:]
        return calls


def served(*, max_rows: int, max_context: int, tokens: int = 0, steps: int = 1) -> Shapes:
    """Few, all of which are compiled before the first request: on a GPU at most 40 programs.

    Args:
        max_rows: sequences at a time, at most 256. max_context: positions of a sequence. tokens: of prompts in a step.
        steps: of decode in one call, where one sequence runs alone.
    """
    rows = tuple(count for count in powers_of_2(max_rows) if count != 2 or max_rows == 2)  # 2 take about as long as 4
    few = {1, min(8, rows[-1]), min(64, rows[-1]), rows[-1]}  # what costs more is asked for less
    together = {16: 16, 64: 4}  # short prompts that come at once: a pass over the weights for all
    lengths = (16, 64, 128, 256, 512, 1024)
    drawn = rows
    if tokens >= CROWD * lengths[-1] and rows[-1] >= CROWD and max_context > lengths[-2]:
        together[lengths[-1]] = CROWD
        if rows[-1] > 128:  # for 40 programs at most
            drawn, few = tuple(count for count in rows if count != 4), few - {8}
    return Shapes(
        decode=(
            *((GREEDY, count, 1) for count in rows),
            *((DRAWN, count, 1) for count in drawn),
            *((kind, 1, steps) for kind in (GREEDY, DRAWN) if steps > 1),
            *((FULL, count, 1) for count in sorted(few)),
        ),
        first=((GREEDY, 1), (FULL, 1), *([(FULL, min(8, rows[-1]))] if rows[-1] > 1 else [])),
        chunks=tuple(
            (count, length)
            for i, length in enumerate(lengths)
            if i == 0 or lengths[i - 1] < max_context
            for count in sorted({1, min(together.get(length, 1), rows[-1])})
        ),
        behind=tuple(sorted({0, min(FAR, max_context), max_context})),
        scored=SCORED_TOKENS,
    )


def any_size(*, max_rows: int, tokens: int, max_context: int, steps: int = 1) -> Shapes:
    """Every power of two, each compiled when it is first needed; of where chunks begin every fourth.

    Args:
        tokens: of all chunks of a step. max_rows, max_context, steps: as in `served`.
    """
    rows = powers_of_2(max_rows)
    return Shapes(
        decode=tuple((kind, count, each) for kind in KINDS for count in rows for each in sorted({1, steps})),
        first=tuple((kind, count) for kind in KINDS for count in rows),
        chunks=tuple(
            (count, length)
            for length in powers_of_2(tokens, FEWEST_TOKENS)
            for count in rows
            if count == 1 or count * length <= tokens
        ),
        behind=(0, *sorted({min(256 << 2 * i, max_context) for i in range(16)})),
        scored=SCORED_TOKENS,
        pass_tokens=COMPILED_TOKENS,
    )


def invariant(*, max_rows: int, chunk: int, max_context: int) -> Shapes:
    """One for each kind of work, whatever there is of it: then no sum depends on who else is there.

    Args:
        chunk: tokens of every chunk. max_rows, max_context: as in `served`.
    """
    rows = powers_of_2(max_rows)[-1]
    return Shapes(
        decode=tuple((kind, rows, 1) for kind in KINDS),
        first=tuple((kind, min(rows, 8)) for kind in KINDS),
        chunks=((1, chunk),),
        behind=(max_context,),
        scored=chunk,
    )


def least(sizes: Sequence[int], wanted: int) -> int:
    """The smallest size that is enough.

    Raises:
        ValueError: none is.
    """
    if not (enough := [size for size in sizes if size >= wanted]):
        raise ValueError(f"expected at most {max(sizes)}, got {wanted}")
    return min(enough)


def powers_of_2(most: int, least: int = 1) -> tuple[int, ...]:
    """From the one, at least `least`, up to the first that is at least `most`."""
    low = next_power_of_2(least)
    return tuple(low << i for i in range((next_power_of_2(max(most, low)) // low).bit_length()))


def _least(programs, kind: Kind, rows: int) -> tuple[Kind, int]:
    """The first by kind, then by rows, that does what this kind does for so many rows."""
    wanted = KINDS.index(kind)
    return min(
        ((k, n) for k, n in programs if KINDS.index(k) >= wanted and n >= rows), key=lambda p: (KINDS.index(p[0]), p[1])
    )


@functools.lru_cache(maxsize=4096)
def _best(units: int, lengths: tuple[int, ...], pass_tokens: int) -> tuple[int, int]:
    """(the least time of so many FEWEST_TOKENS, the first part of it), in tokens."""
    if units <= 0:
        return 0, 0
    found = [(n + pass_tokens + _best(units - -(-n // FEWEST_TOKENS), lengths, pass_tokens)[0], -n) for n in lengths]
    time, part = min(found)
    return time, -part


def _split(length: int, lengths: tuple[int, ...], pass_tokens: int) -> list[int]:
    parts = []
    while length > 0:
        # Far from the end the largest is as good as any.
        part = lengths[-1] if length > 2 * lengths[-1] else _best(-(-length // FEWEST_TOKENS), lengths, pass_tokens)[1]
        parts.append(min(part, length))
        length -= parts[-1]
    return parts
