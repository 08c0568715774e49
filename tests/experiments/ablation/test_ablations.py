"""What leaving a thing out should cost, by arithmetic and by the sweep."""

import dataclasses

import pytest

from experiments.ablation.ablations import ABLATIONS, SHIPPED, named
from experiments.bench import cases
from experiments.bench.errors import UsageError
from experiments.bench.models import config_of

BY_NAME = {one.name: one for one in ABLATIONS}


@pytest.fixture
def step(step_of):
    """Of a published model."""
    return step_of(config=config_of("llama-3.2-1b"), context=1024, dtype="bf16")


def test_the_shipped_step_comes_first():
    assert [one.name for one in named(["command buffers", "control"])] == ["", "control", "command buffers"]
    assert named([one.name for one in ABLATIONS]) == [SHIPPED, *ABLATIONS]
    with pytest.raises(UsageError, match="ablations: unknown 'magic'"):
        named(["control", "magic"])


def test_launches_and_bytes_take_their_time(step):
    """Two more launches a layer, and what lies between them written and read again."""
    found = BY_NAME["norm + activation in gate_up"].predicted(step)
    c = step.config
    assert found.launches == 2 * c.num_layers
    assert found.bytes == c.num_layers * 2 * (c.d_model + 2 * c.d_ff) * 2
    per_launch = (found.us - found.bytes / 4e6) / found.launches  # at 4 TB/s
    assert per_launch == pytest.approx(2.5)
    twice = BY_NAME["norm + activation in gate_up"].predicted(dataclasses.replace(step, batch=2))
    assert twice.bytes == 2 * found.bytes and twice.launches == found.launches


def test_what_is_tried_is_predicted_to_be_faster(step):
    assert {one.name: one.predicted(step).us < 0 for one in ABLATIONS if one.tried} == {
        "while loop in the command buffer": True
    }
    assert BY_NAME["control"].predicted(step).us == 0


def swept(make_record, step, device, op, times):
    """Records of a sweep of an op in which the heuristic's tiles and others take these times."""
    case = cases.make(op, step.model, context=step.context)
    default = case.known.default_tiles(case.shape, device)
    others = [tiles for tiles in case.known.search_space(case.shape) if tiles != default]
    return [
        make_record(op=op, model=step.model, context=case.record_context, tiles=dataclasses.asdict(tiles), median_us=us)
        for tiles, us in zip((default, *others), times)
    ]


def test_the_sweep_predicts_what_tuned_tiles_give(step, make_record, device):
    tuned = BY_NAME["tuned tiles"]
    assert tuned.predicted(step).us is None, "without a sweep nothing is known"
    ops = ("qkv", "attention", "out", "gate_up", "down", "head")
    sweep = [one for op in ops for one in swept(make_record, step, device, op, (10.0, 9.0, 12.0))]
    # A layer has all but the head, and gains the 1 us between the heuristic's tile and the fastest of each.
    assert tuned.predicted(dataclasses.replace(step, sweep=sweep)).us == pytest.approx(16 * 5 + 1)
    wrong = [one | dict(status="wrong: x") if one["median_us"] == 9.0 else one for one in sweep]
    assert tuned.predicted(dataclasses.replace(step, sweep=wrong)).us == 0
    assert tuned.predicted(dataclasses.replace(step, sweep=wrong, batch=2)).us is None, "of another case"


def test_without_the_ring_the_fastest_of_one_stage_is_left(step, make_record, device):
    sweep = []
    for op in ("qkv", "attention", "out", "gate_up", "down", "head"):
        (one,) = swept(make_record, step, device, op, (10.0,))
        stages = [one["tiles"] | dict(num_stages=n) for n in (1, 3)]
        sweep += [one | dict(tiles=stages[0], median_us=14.0), one | dict(tiles=stages[1], median_us=10.0)]
    found = BY_NAME["ring in shared memory"].predicted(dataclasses.replace(step, sweep=sweep))
    assert found.us == pytest.approx(4 * (16 * 4 + 1)), "attention keeps its own"
