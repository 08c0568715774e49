"""A layer as data: all of each weight is streamed once, and programs that wait for each other all come to the end."""

import collections
import random

import pytest

from experiments.persistent import kernel, stages
from experiments.persistent.stages import Await, Signal
from experiments.persistent.variants import VARIANTS
from experiments.persistent.workloads import BITS, WORKLOADS

CASES = [(name, programs) for name in stages.STRUCTURES for programs in (132, 128)]


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("programs, kib", [(132, 16), (128, 16), (132, 8), (132, 32)])
def test_the_programs_chunks_are_each_weight_once(workload, programs, kib):
    workload = WORKLOADS[workload]
    sizes = stages.weight_bytes(workload.model, BITS[workload.weights])
    for name, chunks in stages.chunk_counts(sizes, programs, kib * 1024).items():
        covered = [stages.chunk_index(p, j, programs) for p in range(programs) for j in range(chunks)]
        needed = -(-sizes[name] // (kib * 1024))
        assert sorted(covered) == list(range(programs * chunks)), "no chunk twice"
        assert needed <= programs * chunks < needed + programs, "less than a round of padding"


def test_a_layer_of_1b_is_shared_evenly_by_128_programs():
    workload = WORKLOADS["1b-bf16"]
    assert kernel.weights_shape(VARIANTS["none-128"].design, workload.stages(VARIANTS["none-128"]), 1)[0] == 7424
    assert 7424 * 16 * 1024 * workload.layers == workload.bytes


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_event_and_chunk_is_in_a_layer_once(name, workload):
    found = WORKLOADS[workload].stages(VARIANTS[name])
    steps = stages.steps_of(found)
    events = [event for step in steps for event in step.events]
    signals = [event.counter for event in events if isinstance(event, Signal)]
    assert sum(step.chunks for step in steps) == kernel.chunks(found)
    assert len(signals) == len(set(signals)) == sum(len(stage.signals) for stage in found)
    assert [event.index for event in events if isinstance(event, Await)] == list(range(kernel.waits(found)))


@pytest.mark.parametrize("name", stages.STRUCTURES)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_what_a_stage_needs_is_there_before_its_last_chunk(name, workload):
    """All parts of one stage before, none after the chunk that needs it: part p of n within the first p / n."""
    sizes = stages.weight_bytes(WORKLOADS[workload].model, BITS[WORKLOADS[workload].weights])
    found = stages.STRUCTURES[name](stages.chunk_counts(sizes, 132, 16 * 1024))
    parts = {stage.name: len(stage.signals) for stage in found}
    for stage in found:
        assert stage.signals[-1] == stage.chunks and list(stage.signals) == sorted(set(stage.signals))
        (before,) = {wait.stage for wait in stage.waits}
        assert [wait.part for wait in stage.waits] == list(range(parts[before]))
        assert all(wait.chunk * parts[before] <= wait.part * stage.chunks for wait in stage.waits)


@pytest.mark.parametrize("name, programs", CASES)
def test_programs_come_to_the_end_in_any_order(name, programs):
    """And none passes a wait before all programs that it waits for have signalled."""
    layers, draw = 3, random.Random(0)
    found = stages.STRUCTURES[name](dict(qkv=6, attention=0, out=4, gate_up=32, down=16))
    events = [(layer, event) for layer in range(layers) for step in stages.steps_of(found) for event in step.events]
    sizes, signalled = stages.group_sizes(programs), collections.Counter()
    at = dict.fromkeys(range(programs), 0)

    def ready(program, layer, event):
        group = stages.group_of(program, programs)
        groups = [group] if event.own else range(event.groups)
        need = [sizes[g] if event.groups > 1 else programs for g in groups]
        have = [signalled[layer - event.layers_back, event.counter + (g if event.groups > 1 else 0)] for g in groups]
        return layer < event.layers_back or have == need

    while at:
        runnable = []
        for program, position in at.items():
            layer, event = events[position]
            if isinstance(event, Signal) or ready(program, layer, event):
                runnable.append(program)
        assert runnable, f"nobody can go on: {collections.Counter(map(str, (events[p] for p in at.values())))}"
        for program in draw.sample(runnable, max(1, len(runnable) // 2)):
            layer, event = events[at[program]]
            if isinstance(event, Signal):
                own = stages.group_of(program, programs) if event.groups > 1 else 0
                signalled[layer, event.counter + own] += 1
            at[program] += 1
            if at[program] == len(events):
                del at[program]


@pytest.mark.parametrize("programs", [132, 128, 8])
def test_groups_are_nearly_equal(programs):
    sizes = stages.group_sizes(programs)
    assert sum(sizes) == programs and max(sizes) - min(sizes) <= 1
