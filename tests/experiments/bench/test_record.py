"""The schema of records: what each kind holds, and when two records are the same measurement."""

import dataclasses
import json

import pytest

import pallas_kernels as pk
from experiments.bench import log as logs
from experiments.bench import record
from experiments.bench.errors import ResultsError

OTHERS = ("another", "f32", "auto/fp8", "vllm", "xla", "long", "closed", 7, 7.5, True, dict(another=1), [1, 2])
KEYED = [pytest.param(kind, name, id=f"{kind}-{name}") for kind, what in record.KINDS.items() for name in what.key]

ATTENTION = dataclasses.asdict(pk.AttentionTiles(block_s=16, splits=4))


@pytest.mark.parametrize("kind", record.KINDS)
def test_a_new_record_has_every_field_of_its_kind_and_those_of_its_origin(kind, make_record):
    found = make_record(kind)
    assert set(found) == {"kind", *record.KINDS[kind].fields, *record.ORIGIN}
    assert found["kind"] == kind and found["device"] == "NVIDIA H200" and found["status"] == "ok"
    assert record.check(json.loads(json.dumps(found)), "here") == found


def test_fields_that_are_not_given_are_null():
    found = record.new("tile", op="out", model="ragged", status="ok")
    given = dict(kind="tile", op="out", model="ragged", status="ok")
    assert found == dict.fromkeys(found) | given


def test_a_field_of_no_kind_of_the_wrong_type_or_without_its_value_is_a_programming_error(make_record):
    with pytest.raises(KeyError, match="tile: no fields batch, speed"):
        make_record(speed=1, batch=2)
    with pytest.raises(TypeError, match=r"samples: expected a whole number, got 1\.5"):
        make_record(samples=1.5)
    with pytest.raises(TypeError, match="status: expected text, got null"):
        record.new("tile", op="out", model="ragged")
    with pytest.raises(KeyError, match="tiles"):
        record.new("tiles", status="ok")


def test_whole_numbers_are_numbers_and_truths_are_not(make_record):
    assert make_record(median_us=10)["median_us"] == 10
    with pytest.raises(TypeError, match="median_us: expected a positive number, got true"):
        make_record(median_us=True)


@pytest.mark.parametrize("bad", [None, 7, "text", [1, 2]])
def test_what_is_no_record(bad):
    with pytest.raises(ResultsError, match=r"^here: expected a record, got "):
        record.check(bad, "here")


@pytest.mark.parametrize("kind, name", KEYED)
def test_another_value_of_a_key_field_is_another_measurement(kind, name, make_record):
    fields = record.KINDS[kind].fields | record.ORIGIN
    found, other = make_record(kind), next(value for value in OTHERS if fields[name][0].holds(value))
    assert record.key(found | {name: other}) != record.key(found)


def test_what_makes_no_other_measurement(make_record):
    again = make_record(median_us=99.0, status="wrong: x", date="later", commit="other", command="another", clocks={})
    assert record.key(again) == record.key(make_record())
    tiles = make_record()["tiles"]
    turned = dict(reversed(tiles.items()))
    assert list(turned) != list(tiles) and record.key(make_record(tiles=turned)) == record.key(make_record())


def test_kinds_are_different_measurements(make_record):
    kinds = ("tile", "interpreted_tile", "lowered_tile", "feasible_tiles", "xla_on_cpu", "tile_in_layer")
    assert len({record.key(make_record(kind)) for kind in kinds}) == len(kinds)


def test_every_run_of_a_peer_is_kept_and_a_decode_step_measured_again_is_replaced(make_record):
    peers = [make_record("peer", engine="torch", date=date) for date in ("2026-01-01", "2026-01-02")]
    steps = [
        make_record("decode", ms_per_token=ms, date=date) for ms, date in ((2.0, "2026-01-03"), (3.0, "2026-01-01"))
    ]
    steps.append(make_record("decode", batch=8, date="2026-01-02"))
    records = [*peers, *steps]
    assert record.newest(records, "peer") == peers
    assert record.newest(records, "decode") == [steps[0], steps[2]], "by date, not by the order in the file"
    assert record.newest(records, "layer") == []


def test_committed_records_are_of_this_schema():
    files = sorted(logs.RESULTS.glob("*.jsonl"))
    assert files
    for path in files:
        assert logs.read(path), f"{path.name} is empty"


def test_rounded():
    assert record.rounded(1.23456) == 1.2346 and record.rounded(1.23456, 2) == 1.23 and record.rounded(None) is None


@pytest.mark.parametrize(
    "kind, fields, page_size",
    [
        ("tile", dict(op="attention", tiles=ATTENTION), 0), ("tile", dict(), None), ("xla_on_cpu", dict(), None),
        ("xla_on_cpu", dict(op="attention", tiles=None), 0), ("decode", dict(), 0), ("layer", dict(), 0),
    ],
)  # fmt: skip
def test_a_record_from_before_there_were_pages_is_of_a_contiguous_cache(kind, fields, page_size, make_record):
    found = make_record(kind, **fields)
    old = {name: value for name, value in found.items() if name != "page_size"}
    read = record.check(old, "here")
    assert read == found | dict(page_size=page_size) and "page_size" not in old
    assert record.key(read) == record.key(found)
    assert record.key(found | dict(page_size=16)) != record.key(found)


@pytest.mark.parametrize(
    "kind, fields, kv_dtype",
    [("tile", dict(op="attention", tiles=ATTENTION), "auto"), ("tile", dict(), None), ("decode", dict(), "auto")],
)
def test_a_record_from_before_there_were_8_bits_is_of_a_cache_without(kind, fields, kv_dtype, make_record):
    found = make_record(kind, **fields)
    old = {name: value for name, value in found.items() if name not in ("kv_dtype", "page_size")}
    read = record.check(old, "here")
    assert read == found and read["kv_dtype"] == kv_dtype
    assert record.key(found | dict(kv_dtype="int8")) != record.key(found)


def test_a_kind_that_always_had_pages_needs_them(make_record):
    found = make_record("cache_layout")
    del found["page_size"]
    with pytest.raises(ResultsError, match="here: page_size: missing in a record of kind cache_layout"):
        record.check(found, "here")


def test_a_field_that_tiles_lack_had_its_default(make_record):
    """As of tiles that were measured before there was such a field; they are the same tiles."""
    whole = make_record()
    few = {name: whole["tiles"][name] for name in ("num_warps", "block_k", "block_n")}
    read = record.check(whole | dict(tiles=few), "here")
    assert read == whole and list(read["tiles"]) == list(whole["tiles"])
    for bad in ({name: value for name, value in few.items() if name != "block_k"}, few | dict(block_x=2)):
        with pytest.raises(ResultsError, match="here: tiles: expected block_n, block_k, "):
            record.check(whole | dict(tiles=bad), "here")


def test_what_is_appended_is_what_is_read(make_record, tmp_path):
    few = dict(block_n=4, block_k=256)
    with logs.Log(tmp_path / "records.jsonl") as log:
        log.append(make_record(tiles=few))
        assert log.records == logs.read(tmp_path / "records.jsonl")
