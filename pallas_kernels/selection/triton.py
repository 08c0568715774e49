"""The Triton kernel of top_k_top_p: a program has one row, which it reads in blocks, a few times at most.

The largest logit of every lane, which the first pass finds, says where to look: of k lanes' maxima at or above a key, k
logits are (and of masses likewise), so that the last one kept is not below it. The next pass gathers what is there, a
hundred keys or so, and the search goes on among those alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.common.blocks import Span, load_masked, view
from pallas_kernels.common.launch import launch, launch_dependents
from pallas_kernels.selection import masses
from pallas_kernels.selection.bracket import Bracket, closed
from pallas_kernels.selection.keys import MASKED, NONE, key_of, logit_of
from pallas_kernels.selection.lists import PLACES, List, Memory

WARPS = 16


def top_k_top_p(options, *, scaled, top_k, top_p):
    """As `api.top_k_top_p`."""
    rows, vocabulary = scaled.shape
    lanes = options.lanes
    depth = pl.cdiv(vocabulary, lanes)

    def kernel(refs, last_ref, token_ref, lists_ref):
        launch_dependents(options.interpret)
        row = pl.program_id(0)
        k, p = refs.top_k[row], refs.top_p[row]
        memory = Memory(lists_ref, row, lanes, depth, options.interpret)
        one = Row(refs.scaled, row, vocabulary, lanes, memory, options.interpret)
        last_ref[row], token_ref[row] = jnp.int32(NONE), jnp.int32(vocabulary - 1)

        @pl.when((k < vocabulary) | (p < 1))
        def _():
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
            jax.ShapeDtypeStruct((rows, PLACES * depth * lanes), jnp.int32),
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
    index: Any
    vocabulary: int
    lanes: int
    memory: Memory
    interpret: bool

    @property
    def blocks(self) -> int:
        return pl.cdiv(self.vocabulary, self.lanes)

    def read(self, block: Any) -> tuple[jax.Array, jax.Array]:
        """(float32 [lanes], what is inside); -inf outside."""
        span = Span(block * self.lanes, self.lanes, self.vocabulary)
        at, inside = view(self.ref, self.index, span, interpret=self.interpret)
        return jnp.where(inside, load_masked(at, inside), -jnp.inf), inside

    def keys(self, block: Any) -> jax.Array:
        """int32 [lanes]; NONE outside."""
        logits, inside = self.read(block)
        return jnp.where(inside, key_of(logits), NONE)

    def last_kept(self, k: jax.Array, p: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the key of the last one kept, the largest id of those equal to it that are kept); int32."""
        maxima = self.maxima()
        first = jnp.max(maxima)
        bits = masses.digit_bits(self.vocabulary)
        digits = lambda keys: tuple(masses.digits(logit_of(keys), logit_of(first), bits))
        mass = lambda sums: masses.mass(sums, bits)
        count = lambda keys: (jnp.ones(keys.shape, jnp.uint32),)
        no_count, no_mass = (jnp.uint32(0),), (jnp.uint32(0),) * 3
        limited = k < self.vocabulary
        # (Triton's branches must not return constants: where a result means nothing, another one is returned.)
        # What is masked has no mass, and is looked at only where there is nothing else.
        smallest = jnp.int32(MASKED + 1)

        def floor_by_count():
            bracket = Bracket(smallest, first, no_count)
            return closed(bracket, maxima, count(maxima), lambda n: n[0] >= k.astype(jnp.uint32)).low, p

        def floor_by_mass():
            enough = p * mass(self.summed(digits))
            bracket = Bracket(jnp.where(enough > 0, smallest, first), first, no_mass)
            return closed(bracket, maxima, digits(maxima), lambda sums: ~(mass(sums) < enough)).low, enough

        floor, enough = lax.cond(limited, floor_by_count, floor_by_mass)
        found = self.gathered(floor)

        def by_count():
            there, most = jnp.sum(found.counts), k.astype(jnp.uint32)
            are_enough = there >= k
            bracket = Bracket(jnp.where(are_enough, floor, first), first, no_count)
            least, _, (above,) = self.memory.search(found, bracket, count, lambda n: n[0] >= most)
            return jnp.where(are_enough, least, MASKED), jnp.where(are_enough, k - above.astype(jnp.int32), k - there)

        def by_mass(least, ties):
            def of_top_k():
                above = self.memory.summed(found, no_mass, lambda keys, inside: keep(keys > least, digits(keys)))
                return p * mass(masses.plus(above, ties.astype(jnp.uint32), digits(least)))

            wanted = lax.cond(limited, of_top_k, lambda: enough)
            # Where no mass is wanted, because top-p or all masses are 0, the first one is the last.
            bracket = Bracket(jnp.where(wanted > 0, least, first), first, no_mass)
            last, _, above = self.memory.search(found, bracket, digits, lambda sums: ~(mass(sums) < wanted))
            each = digits(last)
            short = largest(
                (self.vocabulary - 1).bit_length(),
                lambda n: mass(masses.plus(above, n.astype(jnp.uint32), each)) < wanted,
            )
            return last, short + 1

        last, ties = lax.cond(limited, by_count, lambda: (floor, k))
        last, ties = lax.cond(p < 1, lambda: by_mass(last, ties), lambda: (last, ties))
        (equals,) = self.memory.summed(found, (jnp.int32(0),), lambda keys, inside: ((inside & (keys == last)) * 1,))
        # Of what is masked, equals are not in the list, and never are all kept.
        every_id = jnp.maximum(equals, self.vocabulary - 1)
        return last, lax.cond(equals == ties, lambda: every_id, lambda: self.id_of_equal(last, ties))

    def maxima(self) -> jax.Array:
        """The largest key of each lane."""
        none = jnp.full(self.lanes, NONE, jnp.int32)
        return lax.fori_loop(0, self.blocks, lambda b, most: jnp.maximum(most, self.keys(b)), none)

    def summed(self, digits: Any) -> tuple[jax.Array, ...]:
        """The sums of the digits of all keys."""
        zero = jnp.zeros(self.lanes, jnp.uint32)

        def more(block, totals):
            keys = self.keys(block)
            return tuple(total + one for total, one in zip(totals, keep(keys > NONE, digits(keys))))

        return tuple(jnp.sum(total) for total in lax.fori_loop(0, self.blocks, more, (zero,) * 3))

    def gathered(self, floor: jax.Array) -> List:
        """A list of the keys from `floor` on."""

        def more(block, counts):
            keys = self.keys(block)
            return self.memory.append(0, counts, keys, keys >= floor)

        return self.memory.made(0, lax.fori_loop(0, self.blocks, more, jnp.zeros(self.lanes, jnp.int32)))

    def id_of_equal(self, last: jax.Array, ties: jax.Array) -> jax.Array:
        """The id of the `ties`-th token with the key `last`; there are as many."""
        count = lambda block: jnp.sum((self.keys(block) == last).astype(jnp.int32))

        def go_on(carry):
            block, seen, here = carry
            return (seen + here < ties) & (block + 1 < self.blocks)

        def step(carry):
            block, seen, here = carry
            return block + 1, seen + here, count(block + 1)

        block, seen, _ = lax.while_loop(go_on, step, (jnp.int32(0), jnp.int32(0), count(jnp.int32(0))))
        equal = self.keys(block) == last
        place = jnp.cumsum(equal.astype(jnp.int32))
        lane = jnp.arange(self.lanes, dtype=jnp.int32)
        found = jnp.min(jnp.where(equal & (place == ties - seen), lane, self.lanes - 1))
        return jnp.minimum(block * self.lanes + found, self.vocabulary - 1)


def keep(mask: jax.Array, parts: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The parts where the mask is True, 0 elsewhere."""
    return tuple(jnp.where(mask, part, jnp.uint32(0)) for part in parts)


def largest(bits: int, holds: Any) -> jax.Array:
    """The largest number below 2**bits of which something holds that holds of all before it; of 0 it is not asked."""

    def step(i, found):
        number = found + (jnp.int32(1) << (bits - 1 - i))
        return jnp.where(holds(number), number, found)

    return lax.fori_loop(0, bits, step, jnp.int32(0))
