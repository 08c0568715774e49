"""Which records of tiles count."""

import pytest

import pallas_kernels as pk
from experiments.bench import select


@pytest.fixture
def make_tile(make_record):
    """A record of a tile of so many warps."""

    def make(num_warps, **fields):
        return make_record(tiles=make_record()["tiles"] | dict(num_warps=num_warps), **fields)

    return make


def test_records_of_a_device_are_those_of_its_kind_and_of_what_is_still_known(make_record, device):
    own = [make_record(), make_record(device="NVIDIA H200 NVL"), make_record(op="head", model="llama-3.2-1b")]
    others = [
        make_record(device="NVIDIA H100 80GB HBM3"),
        make_record(device="cpu Intel"),
        make_record(op="weighted_gate_up"),
        make_record(model="tiny"),
        make_record("interpreted_tile"),
        make_record("decode"),
    ]
    assert select.of_device([*others, *own], device) == own
    assert select.of_device([*others, *own], device, "interpreted_tile") == [make_record("interpreted_tile")]
    assert select.of_device([*others, *own], pk.DEVICES["h100"]) == others[:1]


def test_cases_in_the_order_of_their_first_record(make_record):
    records = [
        make_record(rows=2), make_record(), make_record(rows=2, median_us=5.0), make_record(context=80),
        make_record(dtype="f16"), make_record(device="cpu"),
    ]  # fmt: skip
    found = select.by_case(records)
    assert list(found) == [
        ("out", "ragged", 2, None, None, None, "bf16"), ("out", "ragged", 1, None, None, None, "bf16"),
        ("out", "ragged", 1, 80, None, None, "bf16"), ("out", "ragged", 1, None, None, None, "f16"),
    ]  # fmt: skip
    assert list(found.values()) == [[records[0], records[2]], [records[1], records[5]], [records[3]], [records[4]]]


@pytest.mark.parametrize("field", ["device", "jax", "sources"])
def test_the_newest_are_those_of_the_software_of_the_last(field, make_tile):
    old, new = make_tile(1, **{field: "old"}), [make_tile(1), make_tile(2)]
    assert select.newest([new[0], old, new[1]]) == new
    assert select.newest([*new, old]) == [old]


def test_a_sweep_of_few_tiles_does_not_hide_that_of_all(make_tile):
    whole = [make_tile(warps, sources="a") for warps in (1, 2, 4)]
    few = [make_tile(warps, sources="b") for warps in (1, 2)]
    assert select.fullest(whole + few) == whole and select.newest(whole + few) == few
    again = [found | dict(sources="c") for found in whole]
    assert select.fullest(whole + few + again) == again, "of equal ones the last"
    assert select.fullest(whole[:2] + few + whole[2:]) == whole
    assert select.fullest(few + few + whole) == whole, "a tile counts once"


def test_only_what_ran_right_on_a_gpu_has_a_time(make_record, make_tile):
    slow, fast = make_tile(1, median_us=9.0), make_tile(2, median_us=5.0)
    others = [
        make_tile(4, median_us=1.0, status="wrong: relative RMS error 1"),
        make_tile(8, median_us=None, status="compile failed: x"),
        make_record("interpreted_tile", tiles=dict(num_warps=16)),
    ]
    assert select.timed([slow, *others, fast]) == [fast, slow]
    assert select.timed(others) == []


def test_of_a_tile_measured_again_the_last_counts(make_record):
    again = [make_record(median_us=5.0), make_record(median_us=6.0)]
    assert select.timed(again) == again[1:]
    assert select.timed([make_record(median_us=5.0), make_record(status="wrong: x")]) == []


def test_pages_make_another_case(make_record):
    records = [make_record(op="attention", context=80, page_size=size) for size in (0, 16, 0)]
    assert list(select.by_case(records).values()) == [[records[0], records[2]], [records[1]]]
