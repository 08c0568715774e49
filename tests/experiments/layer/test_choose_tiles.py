"""Tiles are chosen by the time of a layer, and promoted by it."""

import dataclasses
import json

import pytest

from experiments import promote
from experiments.bench import cases, log
from experiments.bench.log import Log
from experiments.bench.recorded import LAYER_OPS
from experiments.layer import choose_tiles
from tokenspeed.measure.timing import Timing

CONTEXT, PREFETCH = 1024, 4096


class Layers:
    """A layer of 100 us in which `slower(op, tile's fields)` says what a tile costs."""

    model, context, dtype = "ragged", CONTEXT, "bf16"

    def __init__(self, slower, batch, page_size):
        self.slower, self.batch = slower, batch
        how = dict(rows=batch, context=CONTEXT, page_size=page_size)
        self.cases = {op: cases.make(op, self.model, **how) for op in LAYER_OPS}

    def compiled(self, implementation, tiles, prefetch):
        assert implementation == "triton" and set(tiles) == set(LAYER_OPS) and prefetch == PREFETCH
        return 100.0 + sum(self.slower(op, dataclasses.asdict(tile)) for op, tile in tiles.items())

    def time(self, program):
        return Timing(program, program, program, 7)


def of_warps(op, warps, us):
    """What a tile of that op and so many warps costs."""
    return lambda name, tile: us if (name, tile["num_warps"]) == (op, warps) else 0.0


@pytest.fixture
def sweep_of(make_record, device):
    """A sweep of an op in which eight warps beat the heuristic's four, and sixteen are far behind."""

    def make(op):
        case = cases.make(op, "ragged", context=CONTEXT)
        heuristic = dataclasses.asdict(case.known.default_tiles(case.shape, device))
        times = {4: 10.0, 8: 8.0, 16: 20.0}
        return [make_record(op=op, tiles=heuristic | dict(num_warps=w), median_us=us) for w, us in times.items()]

    return make


@pytest.fixture
def swept(sweep_of):
    return sweep_of("out")


@pytest.fixture
def choose(tmp_path, swept, device):
    def run(slower, batch=1, records=swept, page_size=0):
        origin = {name: records[0][name] for name in ("device", "jax", "sources")}
        with Log(tmp_path / "records.jsonl") as results:
            layers = Layers(slower, batch, page_size)
            chosen = choose_tiles.choose(layers, records, device, PREFETCH, 4000.0, results, origin)
        return chosen, log.read(tmp_path / "records.jsonl")

    return run


def entries(tmp_path, device, records):
    promote.promote(records, device, tmp_path)
    path = tmp_path / device.key / "out.json"
    return json.loads(path.read_text())["entries"] if path.exists() else None


def test_the_best_in_the_layer_is_chosen_and_promoted(choose, swept, tmp_path, device):
    chosen, records = choose(of_warps("out", 8, -1.0))
    assert chosen["out"].num_warps == 8
    tried = [one for one in records if one["op"] == "out"]
    assert [(one["tiles"]["num_warps"], one["incumbent"], one["chosen"]) for one in tried] == [
        (4, True, False),
        (8, False, True),
    ], "the incumbent first; what is far behind in the sweep is not tried"
    assert {one["op"] for one in records} == set(LAYER_OPS) and {one["kind"] for one in records} == {"tile_in_layer"}
    (entry,) = entries(tmp_path, device, [*swept, *records])
    assert entry["tiles"]["num_warps"] == 8
    assert entry["evidence"]["layer_us"] == 99.0 and entry["evidence"]["median_us"] == 8.0


def test_the_layer_overrules_the_sweep(choose, swept, tmp_path, device):
    chosen, records = choose(of_warps("out", 8, 1.0))
    assert chosen["out"].num_warps == 4
    assert entries(tmp_path, device, [*swept, *records]) is None
    (entry,) = entries(tmp_path, device, swept)
    assert entry["tiles"]["num_warps"] == 8, "without records of a layer the sweep decides"


@pytest.mark.parametrize("gain_us, warps", [(0.3, 4), (0.5, 8)])
def test_a_gain_within_the_noise_of_the_op_changes_nothing(choose, gain_us, warps):
    """The noise is 4% of the 10 us that the incumbent takes alone."""
    assert choose(of_warps("out", 8, -gain_us))[0]["out"].num_warps == warps


def test_of_several_rows_the_tiles_are_of_their_own_cases(choose, device):
    """No sweep has seen sixteen rows, so what is tried is what there is without one."""
    _, records = choose(lambda op, tile: 0.0, batch=16)
    assert {one["rows"] for one in records} == {16}
    for op in LAYER_OPS:
        case = cases.make(op, "ragged", rows=16, context=CONTEXT)
        expected = [dataclasses.asdict(tiles) for tiles in case.incumbents(device)]
        assert [one["tiles"] for one in records if one["op"] == op] == expected
        assert [one["context"] for one in records if one["op"] == op] == [case.record_context] * len(expected)


def test_tiles_of_paged_attention_are_those_of_its_own_sweep(choose, make_record, tmp_path, device):
    """The sweep of a contiguous cache has nothing to say of pages."""

    def sweep_of(page_size, warps):
        case = cases.make("attention", "ragged", context=CONTEXT, page_size=page_size)
        heuristic = dataclasses.asdict(case.known.default_tiles(case.shape, device))
        tiles = {10.0: heuristic, 8.0: heuristic | dict(num_warps=warps)}
        return [make_record(**case.fields() | dict(tiles=tile), median_us=us) for us, tile in tiles.items()]

    records = [*sweep_of(0, 2), *sweep_of(64, 8)]
    chosen, tried = choose(of_warps("attention", 8, -1.0), records=records, page_size=64)
    assert chosen["attention"].num_warps == 8
    tried = [one for one in tried if one["op"] == "attention"]
    assert [(one["page_size"], one["tiles"]["num_warps"]) for one in tried] == [(64, 4), (64, 8)]
    promote.promote([*records, *tried], device, tmp_path)
    entries = json.loads((tmp_path / device.key / "attention.json").read_text())["entries"]
    warps = {entry["shape"]["page_size"]: entry["tiles"]["num_warps"] for entry in entries}
    assert warps == {CONTEXT: 2, 64: 8}, "each has an entry of its own"


def test_a_later_choice_is_made_among_the_earlier_ones(choose, sweep_of):
    chosen, records = choose(of_warps("gate_up", 8, -1.0), records=[*sweep_of("gate_up"), *sweep_of("out")])
    assert chosen["gate_up"].num_warps == 8 and chosen["out"].num_warps == 4
    assert choose_tiles.ORDER[0] == "gate_up" and choose_tiles.ORDER[-1] == "out"
    seen = {one["op"]: one["layer_tiles"]["gate_up"]["num_warps"] for one in records}
    assert seen == {op: 4 if op == "gate_up" else 8 for op in LAYER_OPS}
    assert [one["layer_us"] for one in records if one["op"] == "out"] == [99.0, 99.0]


def test_the_fastest_are_tried_and_not_more(make_record, device):
    case = cases.make("out", "ragged", context=CONTEXT)
    tiles = [dataclasses.asdict(one) for one in case.known.search_space(case.shape)][: choose_tiles.MOST + 4]
    records = [make_record(tiles=one, median_us=10.0 + 0.1 * i) for i, one in enumerate(tiles)]
    records.append(make_record(tiles=tiles[0], status="wrong: x", median_us=None))
    assert len(choose_tiles.swept(case, records[:-1])) == len(tiles)
    assert tiles[0] not in [one["tiles"] for one in choose_tiles.swept(case, records)], "the last of a tile counts"
    tried = choose_tiles.candidates(case, choose_tiles.swept(case, records[:-1]), device)
    first = case.incumbents(device)
    assert tried[: len(first)] == first
    rest = [case.tiles(one) for one in tiles[: choose_tiles.MOST]]
    assert tried[len(first) :] == [one for one in rest if one not in first]


def test_mistakes_are_one_line(capsys, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert choose_tiles.main([]) == 2
    assert choose_tiles.main(["results.jsonl"]) == 2
    assert choose_tiles.main(["results.jsonl", "--batch=0"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    for error, message in zip(
        errors, ("expected results of a sweep", "the choice of tiles needs an NVIDIA GPU", "batch: expected 1 or more")
    ):
        assert message in error
