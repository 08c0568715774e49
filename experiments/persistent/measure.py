"""Launches checked and timed: every word in its order, and the slope over calls of a program of many launches."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.bench.outcome import Outcome
from experiments.persistent.consumer import RESULTS
from experiments.persistent.design import MIX
from experiments.persistent.variants import Variant
from experiments.persistent.workloads import Workload, program_chunks
from tokenspeed.measure.timing import Timing

LAUNCHES = 12
"""Of a program, each given the results of the one before."""
FEW, MANY = 1, 4
"""Calls of the program whose difference is timed: what the host adds to the first and the last is in both."""
GAVE_UP = "a poll gave up: what it waited for never came"


@dataclasses.dataclass
class Measured(Outcome):
    """What a variant took.

    Attributes:
        timing: microseconds of a launch. poll_cycles: of all polls of a launch: mean of the programs, least, most.
        wait_cycles, wait_cycles_of_last: with a trace, of each wait of a layer: mean, and of the last to come.
    """

    timing: Timing | None = None
    poll_cycles: tuple[float, float, float] | None = None
    wait_cycles: list[float] | None = None
    wait_cycles_of_last: list[float] | None = None


@functools.partial(jax.jit, static_argnums=0)
def weights_of(shape: tuple[int, ...]) -> jax.Array:
    """int32 [chunks, rows, words] of which any two differ."""
    word = lax.iota(jnp.uint32, int(np.prod(shape)))
    return lax.bitcast_convert_type(word * jnp.uint32(2654435761), jnp.int32).reshape(shape)


@functools.partial(jax.jit, static_argnames=("programs", "apart", "whole"))
def checksums(weights: jax.Array, *, programs: int, apart: bool, whole: bool) -> jax.Array:
    """int32 [programs]: what one launch must add to what it is given."""
    streamed = program_chunks(weights, programs, apart)
    if not whole:
        streamed = streamed[:, :, -1:, -1:]
    zero = jnp.zeros(streamed.shape[1:], jnp.int32)
    total, _ = lax.scan(lambda total, chunk: (total * MIX + chunk, None), zero, streamed)
    return total.sum((1, 2), dtype=jnp.int32)


def lower(variant: Variant, workload: Workload) -> jax.stages.Lowered:
    """The program of `LAUNCHES` launches: (int32 [programs, RESULTS], weights) -> (the same, the last one's trace)."""
    launch = workload.launch(variant)

    def chain(given, weights):
        trace = None
        for _ in range(LAUNCHES):
            given, trace = launch(given, weights)
        return given, trace

    return jax.jit(chain).lower(*workload.arguments(variant))


def measure(program: Callable, variant: Variant, workload: Workload, weights: jax.Array, samples: int) -> Measured:
    """Checks and times a variant; raises what running it does.

    Args:
        program: of `lower`, compiled. weights: of `workload.shape(variant)`. samples: slopes that the median is of.
    """
    design, found = variant.design, Measured()
    given = jnp.zeros((design.programs, RESULTS), jnp.int32)
    results, trace = jax.block_until_ready(program(given, weights))
    results = np.asarray(results)
    if results[:, 1].any():
        found.failure = GAVE_UP
        return found
    one = checksums(weights, programs=design.programs, apart=design.apart, whole=design.whole)
    wrong = np.flatnonzero(results[:, 0] != np.asarray(one * LAUNCHES))
    if wrong.size:
        found.failure = f"wrong: {wrong.size} of {design.programs} programs read other words, or in another order"
        return found
    if (polls := results[:, 2] / LAUNCHES).any():
        found.poll_cycles = float(polls.mean()), float(polls.min()), float(polls.max())
    if trace is not None:
        cycles = np.asarray(trace).reshape(workload.layers, -1, design.programs)[1:]  # some of the first are for none
        found.wait_cycles, found.wait_cycles_of_last = cycles.mean((0, 2)).tolist(), cycles.min(2).mean(0).tolist()
    slopes = []
    for _ in range(samples):
        few, many = (_seconds(program, calls, given, weights) for calls in (FEW, MANY))
        slopes.append((many - few) * 1e6 / (MANY - FEW) / LAUNCHES)
    p10, p90 = np.percentile(slopes, [10, 90])
    found.timing = Timing(statistics.median(slopes), float(p10), float(p90), samples)
    return found


def _seconds(program: Callable, calls: int, given: jax.Array, weights: jax.Array) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        given, _ = program(given, weights)
    jax.block_until_ready(given)
    return time.perf_counter() - begin
