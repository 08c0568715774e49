"""Tiles are chosen by the time of a layer, and promoted by it."""

import json

import pytest

from experiments import cases, layer, layer_tiles, promote
from experiments.layer import OPS
from experiments.row_log import Log
from tokenspeed.measure import Timing

CASES = {op: layer.case_of(op, "tiny", context=1024) for op in OPS}


class Layers:
    """A layer of 100 us in which `slower` says what a tile costs."""

    model, context, dtype = "tiny", 1024, "bf16"

    def __init__(self, slower, rows=1):
        self.slower, self.rows = slower, rows

    def compiled(self, implementation, tiles, prefetch):
        assert implementation == "triton" and set(tiles) == set(OPS) and prefetch == 4096
        return 100.0 + sum(self.slower(op, cases.fields_of(tile)) for op, tile in tiles.items())

    def time(self, program):
        return Timing(program, program, program, 7)


@pytest.fixture
def swept(make_row, device):
    """A sweep of `out` in which eight warps beat the heuristic, and sixteen are far behind."""
    heuristic = cases.fields_of(CASES["out"].tiles.default(CASES["out"].shape, device))
    times = {4: 10.0, 8: 8.0, 16: 20.0}
    return [make_row(tiles=heuristic | dict(num_warps=warps), median_us=us) for warps, us in times.items()]


@pytest.fixture
def choose(tmp_path, swept, device):
    def run(slower, rows=1):
        origin = {name: swept[0][name] for name in ("device", "jax", "kernels")}
        with Log(tmp_path / "rows.jsonl") as log:
            chosen = layer_tiles.choose(Layers(slower, rows), swept, device, 4096, 4000.0, log, origin)
        return chosen, [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]

    return run


def entries(tmp_path, device, rows):
    promote.promote(rows, device, tmp_path)
    path = tmp_path / device.key / "out.json"
    return json.loads(path.read_text())["entries"] if path.exists() else None


def test_the_best_in_the_layer_is_chosen_and_promoted(choose, swept, tmp_path, device):
    faster = lambda op, tile: -1.0 if op == "out" and tile["num_warps"] == 8 else 0.0
    chosen, rows = choose(faster)
    assert chosen["out"].num_warps == 8
    tried = [row for row in rows if row["op"] == "out"]
    assert [(row["tiles"]["num_warps"], row["incumbent"], row["chosen"]) for row in tried] == [
        (4, True, False),
        (8, False, True),
    ], "the incumbent first; what is far behind in the sweep is not tried"
    assert {row["op"] for row in rows} == {case.op for case in CASES.values()}
    (entry,) = entries(tmp_path, device, [*swept, *rows])
    assert entry["tiles"]["num_warps"] == 8
    assert entry["evidence"]["layer_us"] == 99.0 and entry["evidence"]["median_us"] == 8.0


def test_the_layer_overrules_the_sweep(choose, swept, tmp_path, device):
    slower = lambda op, tile: 1.0 if op == "out" and tile["num_warps"] == 8 else 0.0
    chosen, rows = choose(slower)
    assert chosen["out"].num_warps == 4
    assert entries(tmp_path, device, [*swept, *rows]) is None
    assert entries(tmp_path, device, swept)[0]["tiles"]["num_warps"] == 8, "without rows of a layer the sweep decides"


def test_a_gain_within_the_noise_of_the_op_changes_nothing(choose):
    faster = lambda op, tile: -0.3 if op == "out" and tile["num_warps"] == 8 else 0.0
    assert choose(faster)[0]["out"].num_warps == 4


def test_of_several_rows_the_norms_are_whole(choose, device):
    _, rows = choose(lambda op, tile: 0.0, rows=16)
    assert {row["op"] for row in rows} == set(OPS) and {row["rows"] for row in rows} == {16}
    heuristic = cases.fields_of(layer.case_of("gate_up", "tiny", 16).chosen(device))
    assert [row["tiles"] for row in rows if row["op"] == "gate_up" and row["incumbent"]] == [heuristic]


def test_a_later_choice_is_made_among_the_earlier_ones(choose, swept):
    chosen, rows = choose(lambda op, tile: 0.0)
    last = next(row for row in rows if row["op"] == layer_tiles.ORDER[-1])
    assert last["layer_tiles"] == {op: cases.fields_of(tile) for op, tile in chosen.items()}
