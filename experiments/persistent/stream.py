"""The body of a launch that streams through a ring of its own."""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from experiments.persistent import consumer
from experiments.persistent.barriers import Barriers
from experiments.persistent.design import LANES, Design
from experiments.persistent.stages import Await, Signal, Step

CONSUMER, COPIER, POLLER = range(3)
"""The threads of a program; who has none of its own, the consumer is."""


def streamed(design: Design, steps: tuple[Step, ...], layers: int, barriers: Barriers):
    """(body, scratch) of the kernel."""
    per_layer = sum(step.chunks for step in steps)
    total, slots = layers * per_layer, design.slots
    inline = design.copier == "inline"
    waits = [event for step in steps for event in step.events if isinstance(event, Await)]

    def body(
        given_ref,
        weights_ref,
        out_ref,
        *rest,
        ring,
        full,
        empty: Any = None,
        ready: Any = None,
        passed: Any = None,
        sums=None,
    ):
        program = lax.axis_index("program")
        run = functools.partial(
            consumer.run_events,
            barriers=barriers,
            ref=consumer.counters_of(barriers),
            program=program,
            trace_ref=rest[0] if design.trace else None,
            waits=len(waits),
        )

        def slot(i):
            return lax.rem(i, jnp.int32(slots))

        def ask(i):
            where = program * total + i if design.apart else i * design.programs + program
            plgpu.copy_gmem_to_smem(weights_ref.at[where], ring.at[slot(i)], full.at[slot(i)])

        def release(i):
            if inline:
                pl.when(i + slots < total)(lambda: ask(i + slots))
            else:
                plgpu.barrier_arrive(empty.at[slot(i)])

        def take(i):
            plgpu.barrier_wait(full.at[slot(i)])
            value = consumer.read(design, ring.at[slot(i)])
            release(i)
            return value

        def happen(events, layer, state):
            for event in events:
                if ready is not None and isinstance(event, Await):
                    plgpu.barrier_wait(ready.at[lax.rem(layer, 2) * len(waits) + event.index])
                else:
                    state = run([event], layer=layer, state=state)
            return state

        def layer_of(layer, state):
            first, taken, ahead = layer * per_layer, 0, []
            for step in steps:
                events = list(step.events)
                if design.hold and any(isinstance(event, Await) for event in events):
                    while isinstance(events[0], Signal):
                        state = happen([events.pop(0)], layer, state)
                    more = range(taken, min(taken + design.hold - len(ahead), per_layer))
                    ahead += [take(first + j) for j in more]
                    taken += len(more)
                if step is steps[-1] and sums is not None:
                    consumer.add_partial_sums(sums, rest[-1])
                state = happen(events, layer, state)
                held = min(len(ahead), step.chunks)
                for value in ahead[:held]:
                    state = consumer.mixed(state, value)
                ahead = ahead[held:]
                if left := step.chunks - held:
                    begin = first + taken
                    state = lax.fori_loop(0, left, lambda j, state, i=begin: consumer.mixed(state, take(i + j)), state)
                    taken += left
            if passed is not None:
                plgpu.barrier_arrive(passed.at[lax.rem(layer, 2)])
            return state

        def consume():
            if inline:
                for i in range(min(slots, total)):
                    ask(jnp.int32(i))
            if sums is not None:
                sums[...] = jnp.zeros(sums.shape, jnp.float32)
            state = lax.fori_loop(0, layers, layer_of, consumer.fresh(design, given_ref, program))
            consumer.store_sum(design, given_ref, out_ref, program, state)
            if ready is None:
                consumer.store_polls(given_ref, out_ref, program, state)

        def copy():
            for i in range(min(slots, total)):
                ask(jnp.int32(i))

            def next_chunk(i, none):
                plgpu.barrier_wait(empty.at[slot(i)])
                pl.when(i < total)(lambda: ask(i))
                return none

            lax.fori_loop(slots, total + slots, next_chunk, None)  # the last ones wait until the ring is empty

        def poll():
            def layer_of(layer, state):
                # Never two layers ahead, even where it gives up: a barrier has two phases.
                pl.when(layer >= 2)(lambda: plgpu.barrier_wait(passed.at[lax.rem(layer, 2)]))
                for event in waits:
                    state = run([event], layer=layer, state=state)
                    plgpu.barrier_arrive(ready.at[lax.rem(layer, 2) * len(waits) + event.index])
                return state

            state = lax.fori_loop(0, layers, layer_of, consumer.fresh(None, given_ref, program))
            for layer in range(max(layers - 2, 0), layers):
                plgpu.barrier_wait(passed.at[layer % 2])
            consumer.store_polls(given_ref, out_ref, program, state)

        if design.threads == 1:
            consume()
            return
        thread = lax.axis_index("thread")
        pl.when(thread == CONSUMER)(consume)
        if design.copier == "warp":
            pl.when(thread == COPIER)(lambda: plgpu.warp_map(lambda warp: pl.when(warp == 0)(copy)))
        else:
            pl.when(thread == COPIER)(copy)
        if design.poller:
            pl.when(thread == POLLER)(poll)

    scratch: dict[str, Any] = dict(
        ring=plgpu.SMEM((slots, design.rows, LANES), jnp.int32), full=plgpu.Barrier(num_barriers=slots)
    )  # fmt: skip
    if not inline:
        scratch["empty"] = plgpu.Barrier(num_barriers=slots)
    if design.poller:
        scratch["ready"] = plgpu.Barrier(num_barriers=2 * len(waits))
        scratch["passed"] = plgpu.Barrier(num_barriers=2)
    return body, scratch
