"""What a program does with its chunks and at the events between them, whoever copies."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from experiments.persistent.barriers import Barriers
from experiments.persistent.design import LANES, MIX, Design
from experiments.persistent.stages import Signal

RESULTS = 3
"""Of each program: the checksum added to what was given, 1 where a poll gave up, cycles in polls."""


@dataclasses.dataclass
class State:
    """What a consumer carries: its checksum, whether a poll gave up, cycles in polls."""

    sum: jax.Array
    failed: jax.Array
    cycles: jax.Array


jax.tree_util.register_dataclass(State)


def fresh(design: Design | None, given_ref, program) -> State:
    """At the beginning of a launch; without a design that of a thread that reads no chunks."""
    total = jnp.int32(0)
    if design is not None and design.whole:
        total = plgpu.layout_cast(jnp.zeros((design.rows, LANES), jnp.int32), _layout(design))
    # Where the launch before gave up, this one does at its first wait.
    return State(total, given_ref[program, 1], jnp.int32(0))


def _layout(design: Design):
    return plgpu.Layout.WG_STRIDED((design.rows, LANES), vec_size=4)


def read(design: Design, slot_ref):
    """What a checksum takes of a chunk: all its words, or the last."""
    if design.whole:
        return plgpu.load(slot_ref, layout=_layout(design), optimized=False)
    return slot_ref[design.rows - 1, LANES - 1]


def mixed(state: State, value) -> State:
    """With one more chunk in the checksum."""
    return dataclasses.replace(state, sum=state.sum * MIX + value)


def run_events(events, barriers: Barriers, ref, layer, program, state: State, trace_ref=None, waits=0) -> State:
    """Signals and waits, in their order; a trace gets the cycles of each of the layer's `waits` waits."""
    for event in events:
        if isinstance(event, Signal):
            barriers.signal(ref, event, layer, program)
        else:
            failed, cycles = barriers.wait(ref, event, layer, program, state.failed)
            state = dataclasses.replace(state, failed=failed, cycles=state.cycles + cycles)
            if trace_ref is not None:
                trace_ref[layer * waits + event.index, program] = cycles
    return state


def store_sum(design: Design, given_ref, out_ref, program, state: State) -> None:
    """The first result of a launch."""
    total = jnp.sum(state.sum) if design.whole else state.sum
    out_ref[program, 0] = given_ref[program, 0] + total


def store_polls(given_ref, out_ref, program, state: State) -> None:
    """The others."""
    out_ref[program, 1] = state.failed
    out_ref[program, 2] = given_ref[program, 2] + state.cycles


def add_partial_sums(sums_ref, total_ref) -> None:
    """As many bytes as down's partial sums, of zeros: what they cost, not what they are."""
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(sums_ref, total_ref, reduction_op="add")
    plgpu.wait_smem_to_gmem(0)


def counters_of(barriers: Barriers):
    """The counters of the launch; None where there are no barriers."""
    return pl.get_global(barriers.type) if barriers.kind != "none" else None
