"""Lists of logits in device memory, one a lane: what a program keeps of a row, written without a word between lanes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.common.blocks import gather, scatter
from pallas_kernels.selection.bracket import Bracket, Enough, Measured, closed, narrowed
from pallas_kernels.selection.keys import NONE, key_of, logit_of

PLACES = 2
"""Where lists may lie: as they were made, and what is left of them as a bracket narrows."""


def apart(lanes: int, row: jax.Array) -> jax.Array:
    """int32 [lanes], 0, 1, 2 and so on; neighbours by neighbouring threads, of which each loads and stores one alone.

    Of indices that the compiler sees to be in order a thread would load four; of a store whose places it does not see
    in order, a thread writes one, and each array would change hands on its way there, through shared memory.
    """
    return jnp.arange(lanes, dtype=jnp.int32) ^ jnp.minimum(row, 0)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Of a row, for lists of `depth` logits at most in so many lanes: PLACES * depth * lanes of them from `base`."""

    ref: Any
    row: Any
    base: int
    lanes: int
    depth: int
    interpret: bool

    @property
    def end(self) -> int:
        return self.base + PLACES * self.depth * self.lanes

    def start(self, place: Any, level: Any) -> Any:
        return self.base + (place * self.depth + level) * self.lanes

    @property
    def lane(self) -> jax.Array:
        return apart(self.lanes, self.row)

    def read(self, place: Any, level: Any, inside: jax.Array) -> jax.Array:
        """float32 [lanes]."""
        return gather(self.ref, self.row, self.start(place, level) + self.lane, mask=inside)

    def write(self, where: jax.Array, logits: jax.Array, mask: jax.Array) -> None:
        scatter(self.ref, self.row, where, value=logits, mask=mask, interpret=self.interpret)

    def append(self, place: int, counts: jax.Array, logits: jax.Array, mask: jax.Array) -> jax.Array:
        """Writes where the mask is True, behind what each lane has already; the new counts."""
        self.write(self.start(place, counts) + self.lane, logits, mask)
        return counts + mask.astype(jnp.int32)

    def settle(self) -> None:
        """All threads have read and written what they were to, so far."""
        if not self.interpret:
            plt.debug_barrier()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lists:
    """Logits of one row, read as keys.

    Attributes:
        memory: where they are. place: int32, below PLACES. counts: int32 [lanes], of each lane.
        longest: int32, the largest of the counts.
    """

    memory: Memory = dataclasses.field(metadata=dict(static=True))
    place: jax.Array
    counts: jax.Array
    longest: jax.Array

    @classmethod
    def made(cls, memory: Memory, place: Any, counts: jax.Array) -> "Lists":
        """Of what has been appended."""
        memory.settle()
        return cls(memory, jnp.asarray(place, jnp.int32), counts, jnp.max(counts))

    def level(self, i: Any) -> tuple[jax.Array, jax.Array]:
        """(the keys at a place of each list, int32 [lanes], whether there is one)."""
        there = i < self.counts
        return jnp.where(there, key_of(self.memory.read(self.place, i, there)), NONE), there

    def summed(self, of: Callable[[jax.Array], tuple[jax.Array, ...]], parts: int) -> tuple[jax.Array, ...]:
        """The sums of what `of(keys)` gives, uint32 scalars; of NONE it is to give 0."""

        def more(i, totals):
            return tuple(total + one for total, one in zip(totals, of(self.level(i)[0])))

        zero = jnp.zeros(self.memory.lanes, jnp.uint32)
        return tuple(jnp.sum(total) for total in lax.fori_loop(0, self.longest, more, (zero,) * parts))

    def search(self, bracket: Bracket, parts_of: Callable[[jax.Array], tuple], enough: Enough) -> Bracket:
        """The closed bracket; keys outside the given one count for nothing."""
        memory = self.memory

        def step(carry):
            bracket, rest = carry
            middle = bracket.middle

            def level(i, carry):
                measured, counts = carry
                keys, there = rest.level(i)
                inside = there & (keys >= bracket.low) & (keys <= bracket.high)
                # Written in place, from the second step on: never beyond what has been read, by all threads.
                memory.settle()
                counts = memory.append(PLACES - 1, counts, logit_of(keys), inside)
                return measured.more(keys, parts_of(keys), inside, middle), counts

            nothing = Measured.nothing(memory.lanes, len(bracket.above)), jnp.zeros(memory.lanes, jnp.int32)
            measured, counts = lax.fori_loop(0, rest.longest, level, nothing)
            place = jnp.maximum(rest.place, PLACES - 1)  # a constant Triton's loops cannot carry
            return narrowed(bracket, measured, enough), Lists.made(memory, place, counts)

        bracket, rest = lax.while_loop(
            lambda carry: carry[0].is_wider(0) & (carry[1].longest > 1), step, (bracket, self)
        )
        keys, _ = rest.level(0)
        return closed(bracket, keys, parts_of(keys), enough)

    def dealt(self, memory: Memory) -> "Lists":
        """The same keys in lists of other lanes, of as equal lengths as may be."""
        ends = jnp.cumsum(self.counts)

        def more(i, carry):
            keys, there = self.level(i)
            memory.write(memory.start(0, 0) + ends - self.counts + i, logit_of(keys), there)
            return carry

        lax.fori_loop(0, self.longest, more, jnp.int32(0))
        return Lists.made(memory, 0, pl.cdiv(jnp.sum(self.counts) - memory.lane, memory.lanes))
