"""Which tiles a sweep tries."""

import dataclasses

import pytest

from experiments.bench import cases
from experiments.bench.errors import UsageError
from experiments.sweep import grid


def test_cases_are_every_combination_and_only_attention_has_contexts():
    found = grid.all_cases(("out", "attention"), ("ragged", "llama-3.2-1b"), (1, 2), ("bf16",), (80, 160))
    assert len(found) == 2 * 2 * (1 + 2)
    assert {case.record_context for case in found if case.op == "out"} == {None}
    assert {case.record_context for case in found if case.op == "attention"} == {80, 160}


@pytest.mark.parametrize("op", cases.OPS)
def test_incumbents_come_first_and_nothing_twice(op, make_options, device):
    case = cases.make(op, "llama-3.1-8b")
    whole = grid.tiles_of(case, make_options(), device, 0)
    first = case.incumbents(device)
    chosen, default = (find(case.shape, device) for find in (case.known.chosen_tiles, case.known.default_tiles))
    assert first == ([chosen] if chosen == default else [chosen, default])
    assert whole[: len(first)] == first
    assert len(set(whole)) == len(whole) and set(case.known.search_space(case.shape)) <= set(whole)


@pytest.mark.parametrize("limit", [1, 2, 7, 10_000])
def test_a_sample_is_even_deterministic_and_feasible(limit, make_options, device):
    case = cases.make("qkv", "llama-3.1-8b")
    sample = grid.tiles_of(case, make_options(), device, limit)
    assert sample == grid.tiles_of(case, make_options(), device, limit)
    first = case.incumbents(device)
    feasible = [t for t in case.known.search_space(case.shape) if case.known.feasible(t, case.shape, device)]
    assert len(sample) == max(len(first), min(limit, len({*feasible, *first})))
    assert sample[: len(first)] == first and set(sample[len(first) :]) <= set(feasible)


def test_restrictions_apply_to_the_ops_that_have_the_field(make_options, device):
    options = make_options(num_warps=(4,), block_s=(32,))
    for op in ("out", "attention"):
        case = cases.make(op, "llama-3.1-8b")
        tiles = grid.tiles_of(case, options, device, 0)[len(case.incumbents(device)) :]
        assert tiles and {tile.num_warps for tile in tiles} == {4}
        assert op == "out" or {dataclasses.asdict(tile)["block_s"] for tile in tiles} == {32}


def test_restrictions_that_leave_a_case_no_tile(make_options):
    asked = make_options(block_n=(3,), num_warps=(4,))
    with pytest.raises(UsageError, match=r"block_n=\(3,\), num_warps=\(4,\): no tile of out's search space for ragged"):
        grid.check_restrictions(grid.of_options(asked), asked)
    for allowed in (make_options(), make_options(num_warps=(4,))):
        grid.check_restrictions(grid.of_options(allowed), allowed)


def test_even_sample():
    assert grid.even_sample(list(range(9)), 3) == [1, 4, 7]
    assert grid.even_sample([1, 2], 5) == [1, 2]
    assert grid.even_sample([1, 2], -1) == []
