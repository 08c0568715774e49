"""Which winners are promoted, and what is written."""

import dataclasses
import json

import pytest

from experiments import cases, promote, row_log
from experiments.report import RESULTS
from pallas_kernels.common import devices, tuned
from pallas_kernels.common.tiles import Tiles

CASE = cases.make("out", "tiny")
HEURISTIC = cases.fields_of(CASE.tiles.default(CASE.shape, devices.DEVICES["h200"]))
FAST = dict(HEURISTIC, num_warps=8)
FASTER = dict(HEURISTIC, num_warps=16)


@pytest.fixture
def promoted(tmp_path, device):
    """Promotes rows and returns the tuned file's entries, or None where it was not written."""

    def run(rows):
        promote.promote(rows, device, tmp_path)
        path = tmp_path / device.key / "out.json"
        assert not list(tmp_path.rglob("*.tmp"))
        return json.loads(path.read_text())["entries"] if path.exists() else None

    return run


def test_a_winner_by_more_than_the_noise(promoted, make_row):
    entries = promoted([make_row(tiles=HEURISTIC, median_us=10.0), make_row(tiles=FAST, median_us=9.5)])
    (entry,) = entries
    assert entry["tiles"] == FAST
    assert entry["shape"] == dataclasses.asdict(CASE.shape)
    for field in (
        "median_us", "p10_us", "p90_us", "percent_of_ceiling", "ceiling_gbps", "xla_us", "error", "device", "driver",
        "jax", "commit", "date", "command",
    ):  # fmt: skip
        assert field in entry["evidence"]
    assert entry["evidence"]["median_us"] == 9.5


@pytest.mark.parametrize(
    "winner",
    [
        dict(median_us=9.7),
        dict(median_us=5.0, status="wrong: relative RMS error 1"),
        dict(median_us=5.0, mode="interpret", status="ok (interpret, not timed)"),
        dict(median_us=None),
        dict(median_us=5.0, device="cpu"),
        dict(median_us=5.0, device="NVIDIA H100 80GB HBM3"),
    ],
)
def test_what_is_not_promoted(promoted, make_row, winner):
    assert promoted([make_row(tiles=HEURISTIC), make_row(tiles=FAST, **winner)]) is None


def test_without_the_incumbent_nothing_is_promoted(promoted, make_row):
    assert promoted([make_row(tiles=FAST, median_us=1.0)]) is None


def test_where_the_heuristic_fails_the_winner_is_promoted(promoted, make_row):
    rows = [make_row(tiles=HEURISTIC, status="compile failed: x", median_us=None), make_row(tiles=FAST)]
    assert promoted(rows)[0]["tiles"] == FAST


def test_the_tuned_tile_is_the_one_to_beat(promoted, make_row):
    first = [make_row(tiles=HEURISTIC, median_us=10.0), make_row(tiles=FAST, median_us=8.0)]
    assert promoted(first)[0]["tiles"] == FAST
    close = [*first, make_row(tiles=FASTER, median_us=7.8)]
    assert promoted(close)[0]["tiles"] == FAST
    clear = [*first, make_row(tiles=FASTER, median_us=7.6)]
    assert promoted(clear)[0]["tiles"] == FASTER


def test_a_tuned_tile_that_was_not_measured_gives_way_to_the_heuristic_as_rival(promoted, make_row):
    promoted([make_row(tiles=HEURISTIC, median_us=10.0), make_row(tiles=FAST, median_us=8.0)])
    entries = promoted([make_row(tiles=HEURISTIC, median_us=10.0), make_row(tiles=FASTER, median_us=9.0)])
    assert entries[0]["tiles"] == FASTER


def test_other_shapes_keep_their_entries(promoted, make_row):
    def pair(rows):
        case = cases.make("out", "tiny", rows=rows)
        heuristic = cases.fields_of(case.tiles.default(case.shape, devices.DEVICES["h200"]))
        return [make_row(rows=rows, tiles=heuristic), make_row(rows=rows, tiles=FAST, median_us=5.0)]

    promoted(pair(1))
    assert [entry["shape"]["rows"] for entry in promoted(pair(2))] == [1, 2]


def test_rows_of_older_sources_do_not_count(promoted, make_row):
    old = make_row(tiles=FASTER, median_us=1.0, kernels="old")
    rows = [old, make_row(tiles=HEURISTIC), make_row(tiles=FAST, median_us=5.0)]
    assert promoted(rows)[0]["tiles"] == FAST


def test_kernels_read_what_is_written(promoted, make_row, device, monkeypatch, tmp_path):
    promoted([make_row(tiles=HEURISTIC), make_row(tiles=FAST, median_us=5.0)])
    (tmp_path / "tuned").symlink_to(tmp_path)
    monkeypatch.setattr(tuned.importlib.resources, "files", lambda package: tmp_path)
    tuned.load.cache_clear()
    try:
        assert tuned.lookup("out", CASE.shape, device) == FAST
        assert tuned.lookup("out", dataclasses.replace(CASE.shape, rows=9), device) is None
    finally:
        tuned.load.cache_clear()


def test_command(tmp_path, make_row, monkeypatch, capsys):
    monkeypatch.setattr(promote, "TUNED", tmp_path)
    monkeypatch.setattr(promote.promote, "__defaults__", (tmp_path,))
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(make_row(tiles=t, median_us=us)) + "\n" for t, us in ((HEURISTIC, 9), (FAST, 5)))
    )
    assert promote.main([str(path)]) == 0
    assert "promoted  out tiny rows=1: 5.00 us, the heuristic 9.00 us" in capsys.readouterr().out
    assert (tmp_path / "h200" / "out.json").exists()


def test_mistakes(tmp_path, make_row, capsys):
    assert promote.main([str(tmp_path / "none.jsonl")]) == 2
    cpu = tmp_path / "cpu.jsonl"
    cpu.write_text(json.dumps(make_row(mode="xla-cpu", device="cpu")) + "\n")
    assert promote.main([str(cpu)]) == 2
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{\n\n")
    assert promote.main([str(broken)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 3 and "no such file" in err[0] and "no rows measured" in err[1] and "broken.jsonl:1" in err[2]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("sweep-*.jsonl")), ids=lambda path: path.stem)
def test_committed_rows_name_tiles_as_new_ones_do(path):
    """A tile that was measured before Tiles had another field is the same tile."""
    rows = [row for row in row_log.read(path) if row["tiles"]]
    kinds = {row["op"]: cases.make(row["op"], "tiny").tiles.Tiles for row in rows}
    assert rows and all(cases.fields_of(kinds[row["op"]](**row["tiles"])) == row["tiles"] for row in rows)


def test_a_sweep_of_few_tiles_does_not_hide_that_of_all(make_row):
    whole = [make_row(tiles=tiles, kernels="a") for tiles in (HEURISTIC, FAST, FASTER)]
    few = [make_row(tiles=tiles, kernels="b") for tiles in (HEURISTIC, FAST)]
    assert promote.fullest(whole + few) == whole and promote.newest(whole + few) == few
    again = [row | dict(kernels="c") for row in whole]
    assert promote.fullest(whole + few + again) == again, "of equal ones the last"
    assert promote.fullest(whole[:2] + few + whole[2:]) == whole
    assert promote.fullest(few + few + whole) == whole, "a tile counts once"


def test_programs_are_named_where_there_are_some():
    assert cases.fields_of(Tiles(block_n=4, block_k=512, programs=132))["programs"] == 132


def test_weighted_rows_are_promoted_by_a_layer_only(make_row, tmp_path, device, capsys):
    case = cases.make("weighted_gate_up", "tiny")
    slow = cases.fields_of(case.tiles.default(case.shape, device))
    rows = [make_row(op=case.op, tiles=slow), make_row(op=case.op, tiles=dict(slow, num_warps=8), median_us=5.0)]
    assert promote.promote(rows, device, tmp_path) == 0
    assert "not tried in a layer" in capsys.readouterr().out
