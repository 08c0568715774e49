"""Lists of keys in device memory, one a lane: what a program keeps of a row, written without a word between lanes."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.common.blocks import scatter
from pallas_kernels.selection.bracket import Bracket, Enough, Measured, closed, narrowed
from pallas_kernels.selection.keys import NONE

PLACES = 2
"""Where a list may lie: the first one of a row, which stays, and what is left of it as a bracket narrows."""


class List(NamedTuple):
    """Keys of one row.

    Attributes:
        place: int32, below PLACES. counts: int32 [lanes], keys of each lane. longest: int32, the largest of them.
    """

    place: jax.Array
    counts: jax.Array
    longest: jax.Array


@dataclasses.dataclass(frozen=True)
class Memory:
    """A row's part of the lists' memory: ref int32 [B, PLACES * depth * lanes]."""

    ref: Any
    row: Any
    lanes: int
    depth: int
    interpret: bool

    def start(self, place: Any, level: Any) -> Any:
        return (place * self.depth + level) * self.lanes

    def read(self, place: Any, level: Any, inside: jax.Array) -> jax.Array:
        """int32 [lanes], NONE where not inside."""
        at = pl.ds(pl.multiple_of(self.start(place, level), self.lanes), self.lanes)
        return plt.load(self.ref.at[self.row, at], mask=inside, other=NONE)

    def append(self, place: Any, counts: jax.Array, keys: jax.Array, mask: jax.Array) -> jax.Array:
        """Writes where the mask is True, behind what each lane has already; the new counts."""
        lane = jnp.arange(self.lanes, dtype=jnp.int32)
        scatter(self.ref, self.row, self.start(place, counts) + lane, value=keys, mask=mask, interpret=self.interpret)
        return counts + mask.astype(jnp.int32)

    def settle(self) -> None:
        """What was written may be read."""
        if not self.interpret:
            plt.debug_barrier()

    def made(self, place: Any, counts: jax.Array) -> List:
        self.settle()
        return List(jnp.asarray(place, jnp.int32), counts, jnp.max(counts))

    def summed(self, found: List, zero: Any, of: Callable[[jax.Array, jax.Array], tuple]) -> tuple:
        """The sums, scalars like `zero`, of what `of(keys, inside)` gives."""

        def more(level, totals):
            inside = level < found.counts
            keys = self.read(found.place, level, inside)
            return tuple(total + one for total, one in zip(totals, of(keys, inside)))

        start = tuple(jnp.full(self.lanes, one) for one in zero)
        return tuple(jnp.sum(total) for total in lax.fori_loop(0, found.longest, more, start))

    def search(self, found: List, bracket: Bracket, parts_of: Callable[[jax.Array], tuple], enough: Enough) -> Bracket:
        """The closed bracket; keys outside the given one count for nothing."""

        def step(carry):
            bracket, found = carry
            middle = bracket.middle

            def level(i, carry):
                measured, counts = carry
                inside = i < found.counts
                keys = self.read(found.place, i, inside)
                inside = inside & (keys >= bracket.low) & (keys <= bracket.high)
                counts = self.append(PLACES - 1, counts, keys, inside)
                return measured.more(keys, parts_of(keys), inside, middle), counts

            nothing = Measured.nothing(self.lanes, len(bracket.above)), jnp.zeros(self.lanes, jnp.int32)
            measured, counts = lax.fori_loop(0, found.longest, level, nothing)
            rest = jnp.maximum(found.place, PLACES - 1)  # of a constant Triton's loops cannot carry
            return narrowed(bracket, measured, enough), self.made(rest, counts)

        bracket, found = lax.while_loop(lambda carry: carry[0].is_open & (carry[1].longest > 1), step, (bracket, found))
        keys = self.read(found.place, 0, found.counts > 0)
        return closed(bracket, keys, parts_of(keys), enough)
