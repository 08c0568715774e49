"""Which winners are promoted, and what is written."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pallas_kernels as pk
from experiments import promote
from experiments.bench import cases, record
from experiments.bench import log as logs
from experiments.bench.errors import ResultsError

CASE = cases.make("out", "ragged")
HEURISTIC = dataclasses.asdict(CASE.known.default_tiles(CASE.shape, pk.DEVICES["h200"]))
FAST = dict(HEURISTIC, num_warps=8)
FASTER = dict(HEURISTIC, num_warps=16)
LAYER = dict(layer_p10_us=99.0, layer_p90_us=101.0, layer_context=1024, layer_tiles=dict(qkv=dict(block_n=8)))


@pytest.fixture
def promoted(tmp_path, device):
    """Promotes records and returns the tuned file's entries, or None where it was not written."""

    def run(records):
        path = tmp_path / device.key / "out.json"
        before = path.read_text() if path.exists() else None
        count = promote.promote(records, device, tmp_path)
        after = path.read_text() if path.exists() else None
        assert bool(count) == (before != after) and not list(tmp_path.rglob("*.tmp"))
        return after and json.loads(after)["entries"]

    return run


def test_a_winner_by_more_than_the_noise(promoted, make_record):
    (entry,) = promoted([make_record(tiles=HEURISTIC, median_us=10.0), make_record(tiles=FAST, median_us=9.5)])
    assert entry["tiles"] == FAST
    assert entry["shape"] == dataclasses.asdict(CASE.shape)
    winner = make_record(tiles=FAST, median_us=9.5)
    assert entry["evidence"] == {name: winner[name] for name in entry["evidence"]}
    assert set(entry["evidence"]) >= {
        "median_us", "p10_us", "p90_us", "percent_of_ceiling", "ceiling_gbps", "xla_us", "error", *record.ORIGIN
    }  # fmt: skip


@pytest.mark.parametrize(
    "winner",
    [
        dict(median_us=9.7),
        dict(median_us=5.0, status="wrong: relative RMS error 1"),
        dict(median_us=None),
        dict(median_us=5.0, device="cpu"),
        dict(median_us=5.0, device="NVIDIA H100 80GB HBM3"),
    ],
)
def test_what_is_not_promoted(promoted, make_record, winner):
    assert promoted([make_record(tiles=HEURISTIC), make_record(tiles=FAST, **winner)]) is None


def test_an_interpreted_tile_is_not_promoted(promoted, make_record):
    assert promoted([make_record(tiles=HEURISTIC), make_record("interpreted_tile", tiles=FAST)]) is None


def test_without_the_incumbent_nothing_is_promoted(promoted, make_record, capsys):
    assert promoted([make_record(tiles=FAST, median_us=1.0)]) is None
    assert "neither the tuned tile nor the heuristic was measured" in capsys.readouterr().out


def test_where_nothing_ran_nothing_is_promoted(promoted, make_record, capsys):
    assert promoted([make_record(tiles=HEURISTIC, status="compile failed: x", median_us=None)]) is None
    assert "no tile has a time" in capsys.readouterr().out


def test_where_the_heuristic_fails_the_winner_is_promoted(promoted, make_record):
    records = [make_record(tiles=HEURISTIC, status="compile failed: x", median_us=None), make_record(tiles=FAST)]
    assert promoted(records)[0]["tiles"] == FAST


def test_the_tuned_tile_is_the_one_to_beat(promoted, make_record):
    first = [make_record(tiles=HEURISTIC, median_us=10.0), make_record(tiles=FAST, median_us=8.0)]
    assert promoted(first)[0]["tiles"] == FAST
    close = [*first, make_record(tiles=FASTER, median_us=7.8)]
    assert promoted(close)[0]["tiles"] == FAST
    clear = [*first, make_record(tiles=FASTER, median_us=7.6)]
    assert promoted(clear)[0]["tiles"] == FASTER


def test_tiles_that_leave_floats_to_the_next_kernel_do_not_count(promoted, make_record):
    case = cases.make("out", "llama-3.2-1b-int8-a8")
    heuristic = dataclasses.asdict(case.known.default_tiles(case.shape, pk.DEVICES["h200"]))
    narrow = make_record(model="llama-3.2-1b-int8-a8", fixed_point=8, tiles=dict(heuristic, block_n=8), median_us=5.0)
    records = [make_record(model="llama-3.2-1b-int8-a8", fixed_point=8, tiles=heuristic, median_us=10.0), narrow]
    assert promoted(records) is None
    better = make_record(model="llama-3.2-1b-int8-a8", fixed_point=8, tiles=dict(heuristic, num_warps=8), median_us=9.0)
    assert promoted([*records, better])[0]["tiles"] == better["tiles"]


def test_a_tuned_tile_that_leaves_floats_gives_way(promoted, make_record, tmp_path, device):
    case = cases.make("out", "llama-3.2-1b-int8-a8")
    heuristic = dataclasses.asdict(case.known.default_tiles(case.shape, device))
    narrow, path = dict(heuristic, block_n=8), tmp_path / device.key / "out.json"
    path.parent.mkdir()
    path.write_text(json.dumps(dict(entries=[dict(shape=dataclasses.asdict(case.shape), tiles=narrow)])))
    found = [
        make_record(model="llama-3.2-1b-int8-a8", fixed_point=8, tiles=tiles, median_us=us)
        for tiles, us in ((narrow, 9), (heuristic, 10))
    ]
    assert [entry["tiles"] for entry in promoted(found)] == [heuristic]


def test_a_tuned_tile_that_was_not_measured_gives_way_to_the_heuristic_as_rival(promoted, make_record):
    promoted([make_record(tiles=HEURISTIC, median_us=10.0), make_record(tiles=FAST, median_us=8.0)])
    entries = promoted([make_record(tiles=HEURISTIC, median_us=10.0), make_record(tiles=FASTER, median_us=9.0)])
    assert [entry["tiles"] for entry in entries] == [FASTER]


def test_other_shapes_keep_their_entries(promoted, make_record):
    def pair(rows):
        case = cases.make("out", "ragged", rows=rows)
        heuristic = dataclasses.asdict(case.known.default_tiles(case.shape, pk.DEVICES["h200"]))
        return [make_record(rows=rows, tiles=heuristic), make_record(rows=rows, tiles=FAST, median_us=5.0)]

    promoted(pair(1))
    assert [entry["shape"]["rows"] for entry in promoted(pair(2))] == [1, 2]
    assert [entry["shape"]["rows"] for entry in promoted(pair(1))] == [1, 2]


def test_several_cases_of_an_op_are_written_together(promoted, make_record):
    records = []
    for model in ("ragged", "llama-3.1-8b"):
        case = cases.make("out", model)
        shown = [case.known.chosen_tiles(case.shape, pk.DEVICES["h200"]), CASE.tiles(FASTER)]
        records += [
            make_record(model=model, tiles=dataclasses.asdict(tiles), median_us=us)
            for tiles, us in zip(shown, (9.0, 5.0))
        ]
    assert [entry["tiles"] for entry in promoted(records)] == [FASTER, FASTER]


def test_records_of_older_sources_do_not_count(promoted, make_record):
    old = make_record(tiles=FASTER, median_us=1.0, sources="old")
    records = [old, make_record(tiles=HEURISTIC), make_record(tiles=FAST, median_us=5.0)]
    assert promoted(records)[0]["tiles"] == FAST


@pytest.fixture
def in_layer(make_record):
    """Records of the heuristic's tile and another in a layer, and of both alone, where the heuristic's is faster."""

    def make(chosen, alone=(HEURISTIC, FAST)):
        tried = [
            make_record(
                "tile_in_layer", tiles=tiles, layer_us=us, incumbent=tiles == HEURISTIC, chosen=tiles == chosen, **LAYER
            )
            for tiles, us in ((HEURISTIC, 110.0), (FAST, 100.0))
        ]
        return [make_record(tiles=tiles, median_us=10.0 + i) for i, tiles in enumerate(alone)] + tried

    return make


def test_where_a_layer_was_measured_that_decides(promoted, in_layer, make_record, capsys):
    (entry,) = promoted(in_layer(FAST))
    assert entry["tiles"] == FAST and entry["evidence"]["median_us"] == 11.0
    assert {name: entry["evidence"][name] for name in ("layer_us", *LAYER)} == dict(LAYER, layer_us=100.0)
    assert "100.00 us a layer, the incumbent 110.00 us" in capsys.readouterr().out


def test_an_incumbent_that_a_layer_chose_stays(promoted, in_layer, make_record):
    fastest_alone = make_record(tiles=FAST, median_us=1.0)
    assert promoted([*in_layer(HEURISTIC), fastest_alone]) is None


def test_what_a_layer_chose_and_no_sweep_measured_is_not_promoted(promoted, in_layer):
    assert promoted(in_layer(FAST, alone=(HEURISTIC,))) is None


@pytest.mark.slow
def test_kernels_read_what_is_written(make_record, device, tmp_path):
    """A copy of the package, to whose tuned tiles a winner is promoted, runs with it from then on."""
    shutil.copytree(Path(pk.__file__).parent, tmp_path / "pallas_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    records = [make_record(tiles=HEURISTIC), make_record(tiles=FAST, median_us=5.0)]
    assert promote.promote(records, device, tmp_path / "pallas_kernels" / "tuned") == 1
    program = f"""
import dataclasses, json, pallas_kernels as pk
op, device = pk.OPS["out"], pk.DEVICES["h200"]
shape = pk.StreamShape(**{dataclasses.asdict(CASE.shape)!r})
found = [op.chosen_tiles(one, device) for one in (shape, dataclasses.replace(shape, outputs=shape.outputs + 1))]
print(json.dumps([pk.__file__, *map(dataclasses.asdict, found)]))
"""
    environment = os.environ | dict(PYTHONPATH=str(tmp_path), JAX_PLATFORMS="cpu")
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    path, exact, other = json.loads(done.stdout)
    assert Path(path).is_relative_to(tmp_path)
    assert exact == FAST and other != FAST


def test_command(tmp_path, make_record, monkeypatch, capsys):
    monkeypatch.setattr(promote, "promote", functools.partial(promote.promote, root=tmp_path / "tuned"))
    paths = []
    for i, records in enumerate(
        ([make_record(tiles=HEURISTIC, median_us=9.0)], [make_record(tiles=FAST, median_us=5)])
    ):
        paths.append(tmp_path / f"{i}.jsonl")
        paths[-1].write_text("".join(json.dumps(found) + "\n" for found in records))
    assert promote.main([str(path) for path in paths]) == 0
    assert "promoted  out ragged rows=1: 5.00 us, the heuristic 9.00 us" in capsys.readouterr().out
    assert (tmp_path / "tuned" / "h200" / "out.json").exists()


def test_mistakes(tmp_path, make_record, capsys):
    assert promote.main([]) == 2
    assert promote.main([str(tmp_path / "none.jsonl")]) == 2
    cpu = tmp_path / "cpu.jsonl"
    cpu.write_text(json.dumps(make_record("xla_on_cpu", device="cpu", tiles=None)) + "\n")
    assert promote.main([str(cpu)]) == 2
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{\n\n")
    assert promote.main([str(broken)]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 4 and all(line.startswith("error: ") for line in lines)
    expected = ("expected files of results", "no such file", "no tiles measured on a known GPU", "broken.jsonl:1")
    assert all(words in line for words, line in zip(expected, lines))


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"entries": [{}]}', '{"entries": [{"shape": {}, "tiles": {"block": 1}}]}']
)
def test_a_tuned_file_that_cannot_be_read_is_left_as_it_is(text, tmp_path, make_record, device):
    path = tmp_path / device.key / "out.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ResultsError, match=r"out\.json: expected a JSON object with 'entries'"):
        promote.promote([make_record(tiles=HEURISTIC), make_record(tiles=FAST, median_us=5.0)], device, tmp_path)
    assert path.read_text() == text


def test_a_choice_in_a_layer_that_was_cut_short_promotes_nothing(tmp_path, make_record, device, capsys):
    tried = make_record("tile_in_layer", tiles=HEURISTIC, incumbent=True, chosen=False)
    sweep = [make_record(tiles=HEURISTIC), make_record(tiles=FAST, median_us=5.0)]
    assert promote.promote([*sweep, tried], device, tmp_path) == 0
    assert "the choice in a layer was cut short" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sweep-h200.jsonl", "tiles-in-layer-h200.jsonl"])
def test_committed_records_name_tiles_as_new_ones_do(name):
    """A tile that was measured before a class of tiles had another field is the same tile."""
    records = logs.read(logs.RESULTS / name)
    assert records
    for found in records:
        tiles = pk.OPS[found["op"]].space.tiles(**found["tiles"])
        assert dataclasses.asdict(tiles) == found["tiles"]


def test_pages_have_entries_of_their_own(tmp_path, make_record, device, capsys):
    records = []
    for page_size, warps in ((0, 2), (64, 8)):
        case = cases.make("attention", "ragged", context=1024, page_size=page_size)
        heuristic = dataclasses.asdict(case.known.default_tiles(case.shape, device))
        for tiles, us in ((heuristic, 10.0), (heuristic | dict(num_warps=warps), 5.0)):
            records.append(make_record(**case.fields() | dict(tiles=tiles), median_us=us))
    assert promote.promote(records, device, tmp_path) == 2
    entries = json.loads((tmp_path / device.key / "attention.json").read_text())["entries"]
    found = [(entry["shape"]["context"], entry["shape"]["page_size"], entry["tiles"]["num_warps"]) for entry in entries]
    assert found == [(1024, 1024, 2), (1024, 64, 8)]
    assert "attention ragged rows=1 context=1024 pages of 64: 5.00 us" in capsys.readouterr().out


def test_a_tuned_tile_that_lacks_a_field_with_a_default_is_the_one_to_beat(tmp_path, promoted, make_record, device):
    """As one that was promoted before there was such a field."""
    path = tmp_path / device.key / "out.json"
    path.parent.mkdir()
    old = {name: FAST[name] for name in ("block_n", "block_k", "num_warps")}
    assert CASE.tiles(old) == dataclasses.replace(CASE.tiles(HEURISTIC), num_warps=8)
    path.write_text(json.dumps(dict(entries=[dict(shape=dataclasses.asdict(CASE.shape), tiles=old, evidence={})])))
    times = {4: 10.0, 8: 8.0, 16: 7.8}
    records = [make_record(tiles=dict(HEURISTIC, num_warps=warps), median_us=us) for warps, us in times.items()]
    assert [entry["tiles"] for entry in promoted(records)] == [old], "within the noise of the tuned tile"
