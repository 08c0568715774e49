"""How programs of one launch wait for each other: words in memory that each program writes and others poll."""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from experiments.persistent import polls
from experiments.persistent.stages import Await, Signal, group_of

KINDS = ("none", "signals", "system", "device", "poll", "read", "flags", "data", "stuck")
"""none: nothing. signals: nobody waits. system, device: Pallas's semaphores, of that memory scope. poll: one thread for
each counter reads it, so often at most. read: `semaphore_read` in a loop. flags: a word of its own for each program,
that counts all its signals; every thread reads one or two. data: no counters, every output has a flag beside it, and
no fence is needed. stuck: as poll, but the first program never signals."""
LIMIT = 1 << 18
"""Readings of a poll; one takes 0.7 to 1 microsecond, so that it ends within half a second."""


class Barriers:
    """The words of one launch.

    Args:
        kind: of `KINDS`. programs: of the launch. layers: of the model. counters: of a layer.
    """

    def __init__(self, kind: str, programs: int, layers: int, counters: int):
        self.kind, self.programs, self.counters = kind, programs, counters
        self.size = dict(flags=programs, data=2 * counters * self._block).get(kind, layers * counters)

    @property
    def type(self):
        """Of the words, which are zero when a launch begins."""
        return plgpu.SemaphoreType.REGULAR((self.size,))

    def signal(self, ref, event: Signal, layer, program) -> None:
        """Once all threads of the program are here."""
        at = layer * self.counters + event.counter
        if event.groups > 1:
            at = at + group_of(program, self.programs)
        match self.kind:
            case "none":
                pass
            case "flags":
                plgpu.semaphore_signal(ref.at[program], memory_scope="gpu")
            case "data":
                each = _pairs(event)
                polls.store_pairs(ref, self._data(event, layer) + program * each * 2, layer + 1, each=each)
            case "system":
                pl.semaphore_signal(ref.at[at])
            case "stuck":
                pl.when(program > 0)(lambda: plgpu.semaphore_signal(ref.at[at], memory_scope="gpu"))
            case _:
                plgpu.semaphore_signal(ref.at[at], memory_scope="gpu")

    def wait(self, ref, event: Await, layer, program, failed):
        """Returns `failed`, or 1 where the limit was reached (it then waits no more), and the cycles that it took."""
        layer = layer - event.layers_back
        begun = (layer >= 0).astype(jnp.int32)
        own = group_of(program, self.programs) if event.own else jnp.int32(0)
        at = jnp.maximum(layer, 0) * self.counters + event.counter + own
        limit = jnp.where(failed > 0, 1, LIMIT)
        found, cycles = jnp.int32(0), jnp.int32(0)
        match self.kind:
            case "none" | "signals":
                pass
            case "poll" | "stuck":
                count = 1 if event.own else event.groups
                found, cycles = polls.counters(
                    ref, at, own, begun, limit, count=count, groups=event.groups, programs=self.programs
                )
            case "flags":
                value = begun * (layer * self.counters + event.counter + 1)
                found, cycles = polls.flags(ref, value, limit, programs=self.programs)
            case "data":
                groups = event.groups if event.own else 1
                found, cycles = polls.pairs(
                    ref, self._data(event, jnp.maximum(layer, 0)), own, begun * (layer + 1), limit,
                    each=_pairs(event), groups=groups, programs=self.programs,
                )  # fmt: skip
            case _:
                found = self._by_semaphores(ref.at, at, event, own, begun, limit)
        return failed | found, cycles

    def _by_semaphores(self, refs, at, event: Await, own, begun, limit):
        """One counter after the other; 1 where one did not come to its number in so many readings."""
        failed = jnp.int32(0)
        for group in range(1 if event.own else event.groups):
            need = begun * self._members(own + group, event.groups)
            if self.kind == "read":
                failed = failed | _read(refs[at + group], need, limit)
            elif self.kind == "system":
                pl.semaphore_wait(refs[at + group], value=need, decrement=False)
            else:
                plgpu.semaphore_wait(refs[at + group], value=need, decrement=False, memory_scope="gpu")
        return failed

    def _members(self, group, groups: int):
        """Programs of a group."""
        first = lambda g: (g * self.programs + groups - 1) // groups
        return first(group + 1) - first(group)

    @property
    def _block(self) -> int:
        """Words of all programs' pairs of one counter."""
        return self.programs * polls.PAIRS * 2

    def _data(self, event: Signal | Await, layer):
        """Where the pairs of a counter begin; two layers on nobody reads them any more. Groups share them."""
        return ((layer % 2) * self.counters + event.counter) * self._block


def _pairs(event: Signal | Await) -> int:
    """Of a program, in a part of a stage's output."""
    return max(1, polls.PAIRS // event.parts)


def _read(ref, need, limit):
    def short(state):
        value, readings = state
        return (value < need) & (readings < limit)

    value, _ = lax.while_loop(
        short, lambda state: (pl.semaphore_read(ref), state[1] + 1), (pl.semaphore_read(ref), jnp.int32(1))
    )
    return (value < need).astype(jnp.int32)
