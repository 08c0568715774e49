"""The kernel: one launch whose programs stream all layers through rings of shared memory that run ahead of barriers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from experiments.persistent.barriers import Barriers
from experiments.persistent.consumer import RESULTS
from experiments.persistent.design import LANES, Design
from experiments.persistent.pipeline import pipelined
from experiments.persistent.stages import Stage, counters, steps_of
from experiments.persistent.stream import streamed


def chunks(stages: tuple[Stage, ...]) -> int:
    """Of a program in a layer."""
    return sum(stage.chunks for stage in stages)


def weights_shape(design: Design, stages: tuple[Stage, ...], layers: int) -> tuple[int, ...]:
    """Of the int32 array that is streamed: chunks of all programs, rows, words."""
    return (layers * chunks(stages) * design.programs, design.rows, LANES)


def waits(stages: tuple[Stage, ...]) -> int:
    """Of a program in a layer."""
    return sum(len(stage.waits) for stage in stages)


def build(design: Design, stages: tuple[Stage, ...], layers: int, interpret=None) -> Callable:
    """The launch: (int32 [programs, RESULTS], weights of `weights_shape`) -> (int32 [programs, RESULTS], trace).

    What is given is added to the result, so that launches can be chained. The trace is int32 [layers * waits,
    programs], cycles, or None.
    """
    steps = steps_of(stages)
    if design.barriers == "flags" and any(stage.groups > 1 for stage in stages):
        raise ValueError("barriers: 'flags' knows no groups")
    barriers = Barriers(design.barriers, design.programs, layers, counters(stages)[""])
    make = pipelined if design.copier == "pipeline" else streamed
    body, scratch = make(design, steps, layers, barriers)
    threads: dict[str, Any] = dict(num_threads=design.threads, thread_name="thread") if design.threads > 1 else {}
    out = [jax.ShapeDtypeStruct((design.programs, RESULTS), jnp.int32)]
    if design.trace:
        out.append(jax.ShapeDtypeStruct((layers * waits(stages), design.programs), jnp.int32))
    if design.reduce_kib:
        scratch["sums"] = plgpu.SMEM((design.reduce_kib, 256), jnp.float32)
        out.append(jax.ShapeDtypeStruct((design.reduce_kib, 256), jnp.float32))
    launch = plgpu.kernel(
        body,
        out_type=tuple(out),
        grid=(design.programs,),
        grid_names=("program",),
        scratch_types=scratch,
        kernel_name="persistent",
        interpret=interpret,
        **threads,
    )

    @jax.jit
    def call(given, weights):
        results = launch(given, weights)
        return results[0], results[1] if design.trace else None

    return call
