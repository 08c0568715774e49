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


def test_only_attention_has_page_sizes(make_options):
    asked = make_options(ops=("qkv", "attention"), contexts=(80, 160), page_sizes=(0, 16))
    found = [(case.op, case.context, case.record_page_size) for case in grid.of_options(asked)]
    assert found == [
        ("qkv", 80, None), ("attention", 80, 0), ("attention", 80, 16), ("attention", 160, 0), ("attention", 160, 16),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="page_sizes: expected less than the context, 80, got 80"):
        make_options(contexts=(160, 80), page_sizes=(80,))


def test_only_attention_has_dtypes_of_the_cache(make_options, device):
    asked = make_options(ops=("qkv", "attention"), contexts=(80,), kv_dtypes=("auto", "int8", "auto/fp8"))
    found = grid.of_options(asked)
    assert [(case.op, case.record_kv_dtype) for case in found] == [
        ("qkv", None), ("attention", "auto"), ("attention", "int8"), ("attention", "auto/fp8"),
    ]  # fmt: skip
    _, plain, int8, values = found
    assert [(case.shape.k_dtype, case.shape.v_dtype) for case in (plain, int8, values)] == [
        (None, None), ("int8", "int8"), (None, "float8_e4m3fn"),
    ]  # fmt: skip
    assert plain.cost.bytes > values.cost.bytes > int8.cost.bytes
    for case in found:
        again = cases.of_record(case.fields() | dict(context=case.record_context))
        assert again.shape == case.shape
    with pytest.raises(UsageError, match="kv_dtypes: expected auto, fp8 or int8, or two of them for keys/values"):
        make_options(kv_dtypes=("fp16",))


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


def feasible_of(case, device):
    first = case.incumbents(device)
    space = case.known.search_space(case.shape)
    return first, [t for t in space if t not in first and case.known.feasible(t, case.shape, device)]


def test_of_many_rows_the_first_of_the_search_space_are_timed(make_options, device):
    case = cases.make("out", "llama-3.1-8b", rows=32)
    first, space = feasible_of(case, device)
    options = make_options(max_tiles=0, max_tiles_many_rows=10)
    assert grid.timed_tiles(case, options, device) == first + space[: 10 - len(first)]
    few = make_options(max_tiles=4, max_tiles_many_rows=10)
    sample = grid.even_sample(space[: 10 - len(first)], 4 - len(first))
    assert grid.timed_tiles(case, few, device) == first + sample, "of those, an even sample"
    assert grid.timed_tiles(case, make_options(max_tiles=0, max_tiles_many_rows=1), device) == first
    without = make_options(max_tiles=0, max_tiles_many_rows=0)
    assert grid.timed_tiles(case, without, device) == grid.tiles_of(case, without, device, 0), "0 is all"


def test_of_attention_of_many_rows_an_even_sample_is_timed(make_options, device):
    case = cases.make("attention", "llama-3.1-8b", rows=32)
    options = make_options(max_tiles=0, max_tiles_many_rows=10)
    assert grid.timed_tiles(case, options, device) == grid.tiles_of(case, options, device, 10)


@pytest.mark.parametrize("rows", [1, 16])
def test_the_cap_of_many_rows_is_not_that_of_few(rows, make_options, device):
    case = cases.make("out", "llama-3.1-8b", rows=rows)
    options = make_options(max_tiles=0, max_tiles_many_rows=2)
    assert grid.timed_tiles(case, options, device) == grid.tiles_of(case, options, device, 0)
