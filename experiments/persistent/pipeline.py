"""The body of a launch that streams by Pallas's own pipeline, of which one warpgroup only copies."""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from experiments.persistent.barriers import Barriers
from experiments.persistent.consumer import counters_of, fresh, mixed, read, run_events, store_polls, store_sum
from experiments.persistent.design import LANES, Design
from experiments.persistent.stages import Step

MEMORY_REGISTERS = 40
"""Of a thread that copies."""


def pipelined(design: Design, steps: tuple[Step, ...], layers: int, barriers: Barriers):
    """By Pallas's pipeline over all chunks: whoever consumes looks at each whether anything happens before it."""
    per_layer = sum(step.chunks for step in steps)
    before: dict[int, tuple] = {}
    position = 0
    for step in steps:
        before[position] = before.get(position, ()) + step.events
        position += step.chunks
    after = before.pop(per_layer, ())

    def body(given_ref, weights_ref, out_ref):
        ref = counters_of(barriers)
        program = lax.axis_index("program")

        def one(indices, slot_ref, state) -> Any:
            (i,) = indices
            layer, position = lax.div(i, jnp.int32(per_layer)), lax.rem(i, jnp.int32(per_layer))
            run = functools.partial(run_events, barriers=barriers, ref=ref, layer=layer, program=program)
            for where, events in before.items():
                if events:
                    state = lax.cond(
                        position == where, lambda s, e=events: run(e, state=s), lambda s: s, state
                    )  # fmt: skip
            state = mixed(state, read(design, slot_ref.at[0]))
            if after:
                state = lax.cond(
                    position == per_layer - 1, lambda s: run(after, state=s), lambda s: s, state
                )  # fmt: skip
            return state

        def context(pipeline):
            state = pipeline(fresh(design, given_ref, program))
            store_sum(design, given_ref, out_ref, program, state)
            store_polls(given_ref, out_ref, program, state)

        spec = plgpu.BlockSpec((1, design.rows, LANES), lambda i: (i * design.programs + program, 0, 0))
        plgpu.emit_pipeline_warp_specialized(
            one,
            grid=(layers * per_layer,),
            in_specs=[spec],
            max_concurrent_steps=design.slots,
            wg_axis="thread",
            num_compute_wgs=1,
            memory_registers=MEMORY_REGISTERS,
            compute_context=context,
        )(weights_ref)

    return body, {}
