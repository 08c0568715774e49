"""The Triton kernel of top_k_top_p: a program has one row, which it reads in blocks, a few times at most.

The largest logit of every lane, which the first pass finds, says where to look: of k lanes' maxima at or above a key, k
logits are (and of masses likewise), so that the last one kept is not below it. The next pass gathers what is there, a
hundred keys or so, and the search goes on among those alone.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.common import hooks
from pallas_kernels.common.blocks import gather
from pallas_kernels.common.launch import launch, launch_dependents
from pallas_kernels.selection import masses
from pallas_kernels.selection.bracket import Bracket, closed
from pallas_kernels.selection.keys import MASKED, NONE, key_of, key_of_raised, logit_of, raised
from pallas_kernels.selection.lists import PLACES, Lists, Memory, apart

WARPS = 16
AT_ONCE = 4
"""Blocks that are on their way to a program at once."""
FEW_LANES, FEW = 32, 8
"""Where there are as few keys, in lists of as many lanes, each warp finds all by itself."""
NEAR = 2**16
"""How near the lower bound comes to what the maxima can say: an eighth, of logits of 16."""
NO_COUNT = (np.uint32(0),)
NO_MASS = (np.uint32(0),) * 3


def top_k_top_p(options, *, scaled, top_k, top_p):
    """As `api.top_k_top_p`."""
    rows, vocabulary = scaled.shape
    lanes = options.lanes

    def kernel(refs, last_ref, token_ref, lists_ref):
        launch_dependents(options.interpret)
        row = pl.program_id(0)
        k, p = refs.top_k[row], refs.top_p[row]
        last_ref[row], token_ref[row] = jnp.int32(NONE), jnp.int32(vocabulary - 1)

        @pl.when((k < vocabulary) | (p < 1))
        def _():
            one = Row(refs.scaled, lists_ref, row, vocabulary, lanes, options.interpret)
            last_ref[row], token_ref[row] = one.last_kept(k, p)

    top_k = jnp.full(rows, vocabulary, jnp.int32) if top_k is None else top_k
    top_p = jnp.ones(rows, jnp.float32) if top_p is None else top_p
    last, token, _ = launch(
        kernel,
        name="top_k_top_p",
        grid=(rows,),
        inputs=dict(scaled=scaled, top_k=top_k, top_p=top_p),
        outputs=[
            jax.ShapeDtypeStruct((rows,), jnp.int32),
            jax.ShapeDtypeStruct((rows,), jnp.int32),
            jax.ShapeDtypeStruct((rows, PLACES * (pl.cdiv(vocabulary, lanes) * lanes + FEW_LANES * FEW)), jnp.float32),
        ],
        num_warps=WARPS,
        num_stages=1,
        interpret=options.interpret,
    )
    keys, last = key_of(scaled), last[:, None]
    return (keys > last) | ((keys == last) & (jnp.arange(vocabulary, dtype=jnp.int32) <= token[:, None]))


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of logits, and what is found of it."""

    ref: Any
    lists_ref: Any
    index: Any
    vocabulary: int
    lanes: int
    interpret: bool

    @property
    def bits(self) -> int:
        return masses.digit_bits(self.vocabulary)

    def mass(self, sums: Sequence[jax.Array]) -> jax.Array:
        return masses.mass(sums, self.bits)

    @property
    def lane(self) -> jax.Array:
        return apart(self.lanes, self.index)

    def read(self, block: Any, whole: bool = False) -> tuple[jax.Array, jax.Array | None]:
        """(float32 [lanes], what is inside, or None of a whole block); -inf outside."""
        start, lane = block * self.lanes, self.lane
        inside = None if whole else start + lane < self.vocabulary
        if self.interpret:
            return gather(self.ref, self.index, start + lane, mask=inside, other=-jnp.inf), inside
        logits = hooks.load_near(self.ref, (self.index, start), (jnp.int32(0), lane), inside)
        return logits if inside is None else jnp.where(inside, logits, -jnp.inf), inside

    def keys(self, block: Any) -> jax.Array:
        """int32 [lanes]; NONE outside."""
        logits, inside = self.read(block)
        return key_of(logits) if inside is None else jnp.where(inside, key_of(logits), NONE)

    def through(self, step: Any, start: Any) -> Any:
        """What is left of `start` after `step(carry, logits, inside)` for each block, as `read` gives it."""

        def some(first, carry, whole):
            blocks = [self.read(first + i, whole) for i in range(AT_ONCE)]
            return functools.reduce(lambda carry, block: step(carry, *block), blocks, carry)

        groups, rest = divmod(self.vocabulary, self.lanes * AT_ONCE)
        if groups:
            start = lax.fori_loop(0, groups, lambda group, carry: some(group * AT_ONCE, carry, True), start)
        return some(groups * AT_ONCE, start, False) if rest else start

    def last_kept(self, k: jax.Array, p: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the key of the last one kept, the largest id of those equal to it that are kept); int32."""
        lowest = jnp.zeros(self.lanes, jnp.uint32)
        maxima = key_of_raised(self.through(lambda most, logits, _: jnp.maximum(most, raised(logits)), lowest))
        first = jnp.max(maxima)
        digits = lambda keys: tuple(masses.digits(logit_of(keys), logit_of(first), self.bits))
        limited = k < self.vocabulary
        # What is masked has no mass, and is looked at only where there is nothing else.
        smallest = jnp.int32(MASKED + 1)

        # (Of a branch Triton takes no constants: where a result means nothing, another number is returned.)
        def floor_by_count():
            most = k.astype(jnp.uint32)
            ones = jnp.ones(self.lanes, jnp.uint32)
            bracket = Bracket(smallest, first, NO_COUNT)
            return closed(bracket, maxima, (ones,), lambda n: n[0] >= most, within=NEAR).low, p

        def floor_by_mass():
            enough = p * self.mass(self.summed(lambda logits: masses.digits(logits, logit_of(first), self.bits)))
            bracket = Bracket(jnp.where(enough > 0, smallest, first), first, NO_MASS)
            reached = lambda sums: ~(self.mass(sums) < enough)
            return closed(bracket, maxima, digits(maxima), reached, within=NEAR).low, enough

        floor, enough = lax.cond(limited, floor_by_count, floor_by_mass)
        wide = Memory(self.lists_ref, self.index, 0, self.lanes, pl.cdiv(self.vocabulary, self.lanes), self.interpret)
        narrow = Memory(self.lists_ref, self.index, wide.end, FEW_LANES, FEW, self.interpret)

        least_logit = logit_of(floor)

        def append(counts, logits, inside):
            mask = ~(logits < least_logit)  # of NaN, too
            return wide.append(0, counts, logits, mask if inside is None else mask & inside)

        found = Lists.made(wide, 0, self.through(append, jnp.zeros(self.lanes, jnp.int32)))
        there = jnp.sum(found.counts)
        select = functools.partial(self.selected, there, k, p, floor, first, enough, digits)
        last, ties, equals = lax.cond(
            there <= FEW_LANES * FEW, lambda: select(found.dealt(narrow)), lambda: select(found)
        )
        # Of what is masked, equals are not in the lists, and never are all kept.
        every_id = jnp.maximum(equals, self.vocabulary - 1)
        return last, lax.cond(equals == ties, lambda: every_id, lambda: self.id_of_equal(last, ties))

    def selected(self, there, k, p, floor, first, enough, digits, found: Lists) -> tuple[jax.Array, ...]:
        """(the key of the last one kept, how many of its equals are kept, how many of them are in the lists).

        Args:
            there: how many keys are in the lists `found`. floor: the smallest that may be. first: the largest.
            enough: the mass that is to be kept, where top-k is off. digits: of keys.
        """
        limited = k < self.vocabulary

        def by_count():
            most, are_enough = k.astype(jnp.uint32), there >= k
            bracket = Bracket(jnp.where(are_enough, floor, first), first, NO_COUNT)
            ones = lambda keys: (jnp.ones(keys.shape, jnp.uint32),)
            least, _, (above,) = found.search(bracket, ones, lambda n: n[0] >= most)
            return jnp.where(are_enough, least, MASKED), jnp.where(are_enough, k - above.astype(jnp.int32), k - there)

        def by_mass(least, ties):
            def of_top_k():
                above = found.summed(lambda keys: kept(keys > least, digits(keys)), 3)
                return p * self.mass(masses.plus(above, ties.astype(jnp.uint32), digits(least)))

            wanted = lax.cond(limited, of_top_k, lambda: enough)
            # Where no mass is wanted, because top-p or all masses are 0, the first one is the last.
            bracket = Bracket(jnp.where(wanted > 0, least, first), first, NO_MASS)
            last, _, above = found.search(bracket, digits, lambda sums: ~(self.mass(sums) < wanted))
            each, there = digits(last), equals(last)
            more = lambda count: self.mass(masses.plus(above, count.astype(jnp.uint32), each))
            short = lambda: largest((self.vocabulary - 1).bit_length(), lambda count: more(count) < wanted)
            return last, lax.cond(there > 1, lambda: 1 + short(), lambda: jnp.maximum(there, 1)), there

        def equals(last):
            return found.summed(lambda keys: ((keys == last).astype(jnp.uint32),), 1)[0].astype(jnp.int32)

        least, ties = lax.cond(limited, by_count, lambda: (floor, k))
        return lax.cond(p < 1, lambda: by_mass(least, ties), lambda: (least, ties, equals(least)))

    def summed(self, digits: Any) -> tuple[jax.Array, ...]:
        """The sums of the digits of all logits."""
        zero = jnp.zeros(self.lanes, jnp.uint32)
        more = lambda totals, logits, inside: tuple(total + one for total, one in zip(totals, digits(logits)))
        return tuple(jnp.sum(total) for total in self.through(more, (zero,) * 3))

    def id_of_equal(self, last: jax.Array, ties: jax.Array) -> jax.Array:
        """The id of the `ties`-th token with the key `last`; there are as many."""
        blocks = pl.cdiv(self.vocabulary, self.lanes)
        count = lambda block: jnp.sum((self.keys(block) == last).astype(jnp.int32))

        def go_on(carry):
            block, seen, here = carry
            return (seen + here < ties) & (block + 1 < blocks)

        def step(carry):
            block, seen, here = carry
            return block + 1, seen + here, count(block + 1)

        block, seen, _ = lax.while_loop(go_on, step, (jnp.int32(0), jnp.int32(0), count(jnp.int32(0))))
        equal = self.keys(block) == last
        place = jnp.cumsum(equal.astype(jnp.int32))
        found = jnp.min(jnp.where(equal & (place == ties - seen), self.lane, self.lanes - 1))
        return jnp.minimum(block * self.lanes + found, self.vocabulary - 1)


def kept(mask: jax.Array, parts: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The parts where the mask is True, 0 elsewhere."""
    return tuple(jnp.where(mask, part, jnp.uint32(0)) for part in parts)


def largest(bits: int, holds: Any) -> jax.Array:
    """The largest number below 2**bits of which something holds that holds of all before it; of 0 it is not asked."""

    def step(i, found):
        number = found + (jnp.int32(1) << (bits - 1 - i))
        return jnp.where(holds(number), number, found)

    return lax.fori_loop(0, bits, step, jnp.int32(0))
