"""The sweep as on a GPU, with a machine whose times are given."""

import dataclasses
import functools
import itertools
import math
import types

import pytest

import pallas_kernels as pk
from experiments.bench import cases, provenance, record, tile_bench
from experiments.bench import log as logs
from experiments.bench.device import DeviceLost
from experiments.bench.errors import ResultsError, UsageError
from experiments.sweep import __main__ as sweep
from experiments.sweep import gpu, grid

COMMAND = "python -m experiments.sweep --config=tiles.py"

PROGRAMS, BENCHES = {}, {}


@pytest.fixture(autouse=True)
def shared_programs(monkeypatch):
    """Sweeps of the same calls share programs, operands and oracles: to compile them takes most of a test's time."""
    compile_call, bench = tile_bench.compile_call, tile_bench.Bench

    def shared_call(call, tiles, implementation, how=None):
        at = getattr(pk, call.op), repr(call), tiles, implementation, how
        return PROGRAMS.get(at) or PROGRAMS.setdefault(at, compile_call(call, tiles, implementation, how))

    def shared_bench(call, how, machine, seed, copies=None):
        at = repr(call), how, seed, copies is None
        found = BENCHES.get(at) or BENCHES.setdefault(at, bench(call, how, machine, seed, copies))
        found.machine = machine
        return found

    monkeypatch.setattr(tile_bench, "compile_call", shared_call)
    monkeypatch.setattr(gpu, "Bench", shared_bench)


def swept(options, machine, device):
    status = sweep.run(options, COMMAND, device, machine)
    return status, logs.read(options.results)


@pytest.mark.slow
def test_records(make_options, make_machine, device, capsys):
    options = make_options(ops=("out", "head"))
    status, records = swept(options, make_machine(times=(50.0, 20.0)), device)
    assert status == 0 and len(records) == 8
    for found in records:
        case = cases.of_record(found)
        assert found["kind"] == "tile" and found["status"] == "ok" and found["context"] is None
        assert found["bytes"] == case.cost.bytes
        assert found["achieved_gbps"] == round(case.cost.bytes / found["median_us"] / 1e3, 1)
        assert found["ceiling_gbps"] == 4000
        # The two are rounded each on its own.
        assert found["percent_of_ceiling"] == pytest.approx(100 * found["achieved_gbps"] / 4000, abs=0.01)
        assert 0 <= found["error"] <= (5 if found["op"] == "head" else 1.5) * found["error_xla"] + 1e-5
        assert found["error_xla"] > 0
        assert found["compile_s"] > 0 and found["calls"] == 2
        assert found["command"] == COMMAND
        assert all(found[field] is not None for field in ("device", "jax", "sources", "date"))
    # XLA is timed once a case, before its tiles.
    assert [found["xla_us"] for found in records] == [50.0] * 4 + [20.0] * 4
    for op in ("out", "head"):
        case = cases.make(op, "ragged")
        tried = [case.tiles(found["tiles"]) for found in records if found["op"] == op]
        assert tried == grid.tiles_of(case, options, device, 4)
    out = capsys.readouterr().out
    assert "4000 GB/s" in out and "block_n=" in out


@pytest.mark.slow
def test_many_rows_are_swept_as_far_as_their_cap(make_options, make_machine, device):
    options = make_options(ops=("out", "attention"), rows=(2, 32), page_sizes=(16,), max_tiles=2, max_tiles_many_rows=3)
    _, records = swept(dataclasses.replace(options, max_tiles=0, rows=(32,)), make_machine(), device)
    assert [(found["op"], found["rows"], found["status"]) for found in records] == [
        (op, 32, "ok") for op in options.ops for _ in range(3)
    ]
    tried = [found["tiles"] for found in records[:3]]
    case = cases.make("out", "ragged", rows=32)
    first = [dataclasses.asdict(tiles) for tiles in case.incumbents(device)]
    assert tried[: len(first)] == first
    _, records = swept(options, make_machine(), device)
    assert [found["rows"] for found in records[6:]] == [2] * 4, "what is there is not measured again"


@pytest.mark.slow
def test_samples_are_spent_on_tiles_near_the_best(make_options, make_machine, device):
    # XLA; first tile: quick then full; second: quick only; third: near, full; fourth: quick only.
    machine = make_machine(times=(50.0, 10.0, 10.0, 12.0, 11.0, 11.0, 11.6))
    _, records = swept(make_options(samples=15, quick_samples=5), machine, device)
    found = [(one["median_us"], one["p10_us"], one["samples"]) for one in records]
    assert found == [(10, 9, 15), (12, 10.8, 5), (11, 9.9, 15), (11.6, 10.44, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("when, kept", [(0, 0), (1, 0), (3, 1)])
def test_interruption_loses_nothing_and_a_second_start_resumes(when, kept, make_options, make_machine, device, capsys):
    def interrupt(number):
        if number == when:
            raise KeyboardInterrupt

    options = make_options()
    status, records = swept(options, make_machine(before=interrupt), device)
    assert status == 130 and len(records) == kept
    assert "Interrupted" in capsys.readouterr().out
    done = list(records)
    status, records = swept(options, make_machine(), device)
    assert status == 0 and len(records) == 4
    assert records[: len(done)] == done
    assert len({record.key(found) for found in records}) == 4
    swept(options, make_machine(), device)
    assert len(logs.read(options.results)) == 4
    assert "Every tile has its record already." in capsys.readouterr().out


@pytest.mark.slow
def test_a_half_written_record_is_measured_again(make_options, make_machine, device):
    options = make_options()
    swept(options, make_machine(), device)
    with open(options.results, "rb+") as file:
        file.truncate(len(file.read()) - 30)
    _, records = swept(options, make_machine(), device)
    assert len(records) == 4 and len({record.key(found) for found in records}) == 4


def test_a_corrupt_file_stops_the_sweep(make_options, make_machine, device, tmp_path):
    options = make_options()
    (tmp_path / "records.jsonl").write_text("{\n{}\n")
    with pytest.raises(ResultsError, match=r"records\.jsonl:1"):
        swept(options, make_machine(), device)
    assert (tmp_path / "records.jsonl").read_text() == "{\n{}\n"


@pytest.mark.slow
def test_records_of_other_software_are_not_reused(make_options, make_machine, device, monkeypatch):
    options = make_options()
    swept(options, make_machine(), device)
    monkeypatch.setattr(provenance, "source_digest", lambda *modules: "another")
    assert [found["sources"] for found in swept(options, make_machine(), device)[1]].count("another") == 4


@pytest.mark.slow
def test_the_time_limit_stops_after_a_tile(make_options, make_machine, device, monkeypatch, capsys):
    clock = itertools.count()
    monkeypatch.setattr(gpu, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    status, records = swept(make_options(time_limit_s=3.5), make_machine(), device)
    assert status == 0 and len(records) == 2
    assert "Time limit reached with 2 to go" in capsys.readouterr().out


def test_infeasible_tiles_are_records_with_the_reason(make_options, make_machine, device):
    none = dataclasses.replace(device, shared_memory_bytes=100)
    _, records = swept(make_options(max_tiles=0, num_warps=(4,)), make_machine(), none)
    assert len(records) > 1
    for found in records:
        assert found["status"].startswith("infeasible: shared memory: needs")
        assert all(found[field] is None for field in ("median_us", "samples", "error", "achieved_gbps"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "off_by, message",
    [
        (None, "compile failed: ValueError: no such kernel"),
        (1.0, "wrong: relative RMS error"),
        (math.nan, "wrong: relative RMS error nan"),
        (math.inf, "wrong: relative RMS error inf"),
    ],
)
def test_a_kernel_that_fails_is_a_record_and_the_sweep_goes_on(
    off_by, message, make_options, make_machine, device, monkeypatch
):
    case, out = cases.make("out", "ragged"), pk.out
    heuristic = case.known.default_tiles(case.shape, device)

    @functools.wraps(out)
    def failing(*args, tiles=None, **how):
        right = out(*args, **how)
        if tiles in (None, heuristic):
            return right
        if off_by is None:
            raise ValueError("no such kernel\nand more lines")
        return right[0], right[1].at[0].add(off_by)

    monkeypatch.setattr(pk, "out", failing)
    status, records = swept(make_options(), make_machine(), device)
    assert status == 0 and len(records) == 4 and records[0]["status"] == "ok"
    for found in records[1:]:
        assert found["status"].startswith(message), found["status"]
        assert "\n" not in found["status"] and found["median_us"] is None
        assert (found["error"] is not None) == (off_by == 1.0), "JSON has neither NaN nor infinity"


def test_a_kernel_that_does_not_run_is_a_record_and_the_sweep_goes_on(make_options, make_machine, device):
    def fail(number):
        if number == 3:  # after XLA and the two timings of the first tile
            raise RuntimeError("out of memory\nand more lines")

    _, records = swept(make_options(), make_machine(before=fail), device)
    assert [found["status"] for found in records] == ["ok", "run failed: RuntimeError: out of memory", "ok", "ok"]


def test_without_xlas_time_the_tiles_are_measured_all_the_same(make_options, make_machine, device, capsys):
    def fail(number):
        if number == 0:
            raise RuntimeError("out of memory")

    _, records = swept(make_options(), make_machine(before=fail), device)
    assert [(found["status"], found["xla_us"], found["median_us"]) for found in records] == [("ok", None, 10.0)] * 4
    assert "ragged out: XLA: run failed: RuntimeError: out of memory" in capsys.readouterr().out


def test_a_lost_device_stops_the_sweep_after_the_record(make_options, make_machine, device, monkeypatch, capsys):
    def lost():
        raise DeviceLost("illegal address")

    monkeypatch.setattr(gpu, "probe_device", lost)

    def fail(number):
        if number == 2:
            raise RuntimeError("launch failed")

    options = make_options()
    status, records = swept(options, make_machine(before=fail), device)
    assert status == 1 and [found["status"].split(":")[0] for found in records] == ["run failed"]
    assert "stopped answering (illegal address)" in capsys.readouterr().out
    _, again = swept(options, make_machine(), device)
    assert again[:1] == records and len(again) == 4, "the next start does not try that tile again"


@pytest.mark.slow
def test_kernels_in_interpret_mode_take_the_same_path(make_options, make_machine, device):
    options = make_options(ops=("attention", "out", "head"), contexts=(32,), page_sizes=(0, 16), max_tiles=1, calls=1)
    _, records = swept(options, make_machine(implementation="interpret"), device)
    assert [(found["op"], found["page_size"], found["status"]) for found in records] == [
        ("attention", 0, "ok"), ("attention", 16, "ok"), ("out", None, "ok"), ("head", None, "ok"),
    ]  # fmt: skip
    bytes_ = [found["bytes"] for found in records[:2]]
    assert bytes_[0] == bytes_[1], "pages hold the same keys"


@pytest.mark.slow
def test_activations_are_in_the_form_that_each_tile_takes(make_options, make_machine, device):
    """At 2 rows, with tiles on vectors and on tensor cores."""
    options = make_options(ops=("out", "gate_up"), models=("ragged-int4-g32",), rows=(2,), max_tiles=3, calls=1)
    _, records = swept(options, make_machine(implementation="interpret"), device)
    assert {found["status"] for found in records} == {"ok"}
    forms = {(found["op"], found["tiles"]["mma"], found["fixed_point"]) for found in records}
    assert forms == {("out", False, None), ("out", True, None), ("gate_up", False, 16), ("gate_up", True, None)}


def test_results_and_pictures_are_named_after_the_device(make_options, make_machine, device, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    options = make_options(results=str(tmp_path / "sweep-{device}.jsonl"), plots=str(tmp_path / "plots"), max_tiles=1)
    sweep.run(options, COMMAND, device, make_machine())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plots", "sweep-h200.jsonl"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["out.png", "roofline.png"]
    assert f"Records: {tmp_path / 'sweep-h200.jsonl'}" in capsys.readouterr().out


def test_winners_are_promoted_where_that_is_asked_and_the_sweep_ended(make_options, make_machine, device, monkeypatch):
    promoted = []
    monkeypatch.setattr(sweep.promote, "promote", lambda records, gpu: promoted.append((len(records), gpu)))

    def interrupt(number):
        if number == 3:
            raise KeyboardInterrupt

    asked = make_options(promote=True)
    assert swept(asked, make_machine(before=interrupt), device)[0] == 130 and promoted == []
    assert swept(asked, make_machine(), device)[0] == 0 and promoted == [(4, device)]
    assert swept(make_options(), make_machine(), device)[0] == 0 and len(promoted) == 1


def test_promoting_needs_a_gpu(make_options, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "gpu_here", lambda: None)
    with pytest.raises(UsageError, match="promote: needs times of a GPU"):
        sweep.run(make_options(promote=True), COMMAND)
    assert list(tmp_path.iterdir()) == []
