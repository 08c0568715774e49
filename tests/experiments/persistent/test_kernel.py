"""The kernel reads every word in its order (interpreted, without barriers), and every variant lowers for a GPU."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from experiments.persistent import kernel, lowered, stages
from experiments.persistent.consumer import RESULTS
from experiments.persistent.design import COPIERS, MIX, Design
from experiments.persistent.measure import checksums, weights_of
from experiments.persistent.variants import VARIANTS
from experiments.persistent.workloads import WORKLOADS

SMALL = Design(kib=1, slots=3, programs=2, barriers="none")
LAYERS = 2
STAGES = stages.five(dict(qkv=2, attention=0, out=1, gate_up=4, down=2))


def expected(design, weights):
    """In a loop over the chunks of each program, as a program reads them."""
    per_program = len(weights) // design.programs
    sums = []
    for program in range(design.programs):
        total = np.zeros(weights.shape[1:], np.int32)
        for j in range(per_program):
            at = program * per_program + j if design.apart else stages.chunk_index(program, j, design.programs)
            total = total * np.int32(MIX) + weights[at]
        sums.append(total.sum(dtype=np.int32) if design.whole else total[-1, -1])
    return np.array(sums, np.int32)


def streamed(design, weights, given):
    launch = kernel.build(design, STAGES, LAYERS, interpret=plgpu.InterpretGPUParams())
    return np.asarray(launch(jnp.asarray(given), weights)[0])


@pytest.mark.parametrize(
    "copier, whole, hold",
    [
        (copier, whole, hold)
        for copier in COPIERS
        for whole, hold in ((False, 0), (True, 0), (True, 2))
        if not (copier == "pipeline" and hold)
    ],
)
def test_every_chunk_is_read_in_its_order(copier, whole, hold):
    design = dataclasses.replace(SMALL, copier=copier, whole=whole, hold=hold)
    weights = weights_of(kernel.weights_shape(design, STAGES, LAYERS))
    given = np.array([[5, 0, 7], [6, 0, 8]], np.int32)
    results = streamed(design, weights, given)
    np.testing.assert_array_equal(results[:, 0], given[:, 0] + expected(design, np.asarray(weights)))
    np.testing.assert_array_equal(results[:, 1:], given[:, 1:])


def test_a_thread_of_its_own_may_wait_for_others():
    """With one wait after another and nothing to wait for, it is as far ahead as it may be."""
    design = dataclasses.replace(SMALL, copier="warpgroup", poller=True)
    weights = weights_of(kernel.weights_shape(design, STAGES, 5))
    launch = kernel.build(design, STAGES, 5, interpret=plgpu.InterpretGPUParams())
    results = np.asarray(launch(jnp.zeros((2, RESULTS), jnp.int32), weights)[0])
    np.testing.assert_array_equal(results[:, 0], expected(design, np.asarray(weights)))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(poller=True), "poller: expected copier 'warpgroup', got 'inline'"),
        (dict(copier="pipeline", hold=2, whole=True), "copier: 'pipeline' takes no hold"),
    ],
)
def test_what_does_not_go_together(fields, message):
    with pytest.raises(ValueError, match=message):
        Design(**fields)


def test_flags_know_no_groups():
    with pytest.raises(ValueError, match="barriers: 'flags' knows no groups"):
        kernel.build(Design(barriers="flags"), stages.slack(dict(qkv=6, attention=0, out=4, gate_up=32, down=16)), 2)


def test_a_programs_chunks_may_lie_together():
    design = dataclasses.replace(SMALL, apart=True)
    weights = weights_of(kernel.weights_shape(design, STAGES, LAYERS))
    results = streamed(design, weights, np.zeros((2, RESULTS), np.int32))
    np.testing.assert_array_equal(results[:, 0], expected(design, np.asarray(weights)))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_the_reference_is_that_of_a_loop(apart, whole):
    design = dataclasses.replace(SMALL, apart=apart, whole=whole)
    weights = weights_of((12, design.rows, 128))
    found = checksums(weights, programs=design.programs, apart=apart, whole=whole)
    np.testing.assert_array_equal(found, expected(design, np.asarray(weights)))


def test_the_checksum_tells_chunks_in_another_order_and_missing_ones():
    weights = weights_of((12, SMALL.rows, 128))
    sums = lambda w: np.asarray(checksums(w, programs=2, apart=False, whole=True))
    swapped = weights.at[jnp.array([2, 4])].set(weights[jnp.array([4, 2])])
    assert sums(swapped)[0] != sums(weights)[0] and sums(swapped)[1] == sums(weights)[1]
    assert sums(weights.at[3].set(weights[1]))[1] != sums(weights)[1], "a slot that was read before it was filled"


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS])
def test_every_variant_lowers(name):
    assert "mosaic_gpu" in lowered.lower(name, WORKLOADS["1b-bf16"]).as_text()


@pytest.mark.parametrize("workload", ["1b-int4", "8b-int4"])
def test_small_stages_lower(workload):
    """Of so few chunks that not each part of a stage has one."""
    assert "mosaic_gpu" in lowered.lower("slack", WORKLOADS[workload]).as_text()
