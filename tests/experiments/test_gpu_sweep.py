"""The sweep as on a GPU, with a machine that times nothing."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import pytest

from experiments import cases, gpu, gpu_sweep, row_log, sweep
from experiments.row_log import Log


def swept(options, machine, device, promoting=False):
    status = sweep.run(options, ["sweep", "--config=tiles.py"], promoting, device, machine)
    return status, row_log.read(options.results)


def test_rows(make_options, make_machine, device, capsys):
    options = make_options(ops=("out", "head"))
    status, rows = swept(options, make_machine(times=(50.0, 20.0)), device)
    assert status == 0 and len(rows) == 8
    for row in rows:
        case = cases.make(row["op"], "tiny")
        assert row["mode"] == "gpu" and row["status"] == "ok" and row["context"] is None
        assert row["bytes"] == case.cost.bytes
        assert row["achieved_gbps"] == round(case.cost.bytes / row["median_us"] / 1e3, 1)
        assert row["ceiling_gbps"] == 4000
        assert row["percent_of_ceiling"] == pytest.approx(100 * row["bytes"] / row["median_us"] / 1e3 / 4000, abs=0.01)
        assert 0 <= row["error"] <= (5 if row["op"] == "head" else 1.5) * row["error_xla"] + 1e-5
        assert row["error_xla"] > 0
        assert row["compile_s"] > 0 and row["calls"] == 2
        for field in ("device", "driver", "clocks", "jax", "kernels", "commit", "dirty", "date", "command"):
            assert field in row
        assert row["command"] == "python -m experiments.sweep --config=tiles.py"
    # XLA is timed once a case, before its tiles.
    assert [row["xla_us"] for row in rows] == [50.0] * 4 + [20.0] * 4
    out = capsys.readouterr().out
    assert "4000 GB/s" in out and "block_n=" in out


def test_samples_are_spent_on_tiles_near_the_best(make_options, make_machine, device):
    # XLA; first tile: quick then full; second: quick only; third: near, full; fourth: quick only.
    machine = make_machine(times=(50.0, 10.0, 10.0, 12.0, 11.0, 11.0, 11.6))
    _, rows = swept(make_options(samples=15, quick_samples=5), machine, device)
    assert [(row["median_us"], row["samples"]) for row in rows] == [(10, 15), (12, 5), (11, 15), (11.6, 5)]


@pytest.mark.parametrize("when, kept", [(0, 0), (1, 0), (3, 1)])
def test_interruption_loses_nothing_and_a_second_start_resumes(when, kept, make_options, make_machine, device, capsys):
    def interrupt(number):
        if number == when:
            raise KeyboardInterrupt

    options = make_options()
    status, rows = swept(options, make_machine(before=interrupt), device)
    assert status == 130 and len(rows) == kept
    assert "Interrupted" in capsys.readouterr().out
    done = list(rows)
    status, rows = swept(options, make_machine(), device)
    assert status == 0 and len(rows) == 4
    assert rows[: len(done)] == done
    assert len({row_log.key(row) for row in rows}) == 4
    swept(options, make_machine(), device)
    assert len(row_log.read(options.results)) == 4


def test_a_half_written_row_is_measured_again(make_options, make_machine, device):
    options = make_options()
    swept(options, make_machine(), device)
    with open(options.results, "rb+") as file:
        file.truncate(len(file.read()) - 30)
    _, rows = swept(options, make_machine(), device)
    assert len(rows) == 4 and len({row_log.key(row) for row in rows}) == 4


def test_a_corrupt_file_stops_the_sweep(make_options, make_machine, device, tmp_path):
    options = make_options()
    (tmp_path / "rows.jsonl").write_text("{\n{}\n")
    with pytest.raises(row_log.ResultsError, match=r"rows\.jsonl:1"):
        swept(options, make_machine(), device)
    assert (tmp_path / "rows.jsonl").read_text() == "{\n{}\n"


def test_rows_of_other_software_are_not_reused(make_options, make_machine, device, monkeypatch):
    options = make_options()
    swept(options, make_machine(), device)
    monkeypatch.setattr(gpu_sweep.provenance, "source_digest", lambda: "another")
    assert len(swept(options, make_machine(), device)[1]) == 8


def test_the_time_limit_stops_after_a_tile(make_options, make_machine, device, monkeypatch, capsys):
    clock = itertools.count()
    monkeypatch.setattr(gpu_sweep, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    status, rows = swept(make_options(time_limit_s=3.5), make_machine(), device)
    assert status == 0 and len(rows) == 2
    assert "Time limit reached with 2 to go" in capsys.readouterr().out


def test_infeasible_tiles_are_rows_with_the_reason(make_options, make_machine, device):
    none = dataclasses.replace(device, shared_memory_bytes=100)
    _, rows = swept(make_options(max_tiles=0, num_warps=(4,)), make_machine(), none)
    assert len(rows) > 1
    for row in rows:
        assert row["status"].startswith("infeasible: shared memory: needs")
        assert row["median_us"] is None and row["samples"] == 0 and row["error"] is None


@pytest.mark.parametrize(
    "wrong, message", [(False, "compile failed: ValueError: no such kernel"), (True, "wrong: relative RMS error")]
)
def test_a_kernel_that_fails_is_a_row_and_the_sweep_goes_on(
    wrong, message, make_options, make_machine, device, tmp_path
):
    case = cases.make("out", "tiny")
    heuristic = case.tiles.default(case.shape, device)

    def call(state, streamed, tiles, implementation):
        if tiles not in (None, heuristic) and not wrong:
            raise ValueError("no such kernel\nand more lines")
        result, after = case.call(state, streamed, tiles, "xla")
        return (result if tiles in (None, heuristic) else result.at[0].add(1)), after

    origin = gpu_sweep.provenance.collect(["test"])
    with Log(tmp_path / "rows.jsonl") as log:
        failing = dataclasses.replace(case, call=call)
        assert gpu_sweep.Sweep(make_options(), log, make_machine(), device, origin).run([failing]) == 0
    rows = row_log.read(tmp_path / "rows.jsonl")
    assert len(rows) == 4 and rows[0]["status"] == "ok"
    for row in rows[1:]:
        assert row["status"].startswith(message), row["status"]
        assert "\n" not in row["status"] and row["median_us"] is None


def test_a_kernel_that_does_not_run_is_a_row_and_the_sweep_goes_on(make_options, make_machine, device):
    def fail(number):
        if number == 3:  # after XLA and the two timings of the first tile
            raise RuntimeError("out of memory\nand more lines")

    _, rows = swept(make_options(), make_machine(before=fail), device)
    assert [row["status"] for row in rows] == ["ok", "run failed: RuntimeError: out of memory", "ok", "ok"]


def test_a_lost_device_stops_the_sweep_after_the_row(make_options, make_machine, device, monkeypatch, capsys):
    def lost():
        raise gpu.DeviceLost("illegal address")

    monkeypatch.setattr(gpu, "probe_device", lost)

    def fail(number):
        if number == 2:
            raise RuntimeError("launch failed")

    status, rows = swept(make_options(), make_machine(before=fail), device)
    assert status == 1 and [row["status"].split(":")[0] for row in rows] == ["run failed"]
    assert "stopped answering" in capsys.readouterr().out


@pytest.mark.slow
def test_kernels_in_interpret_mode_take_the_same_path(make_options, make_machine, device):
    options = make_options(ops=tuple(cases.OPS), max_tiles=1)
    _, rows = swept(options, make_machine(implementation="interpret"), device)
    assert len(rows) == len(cases.OPS) and {row["status"] for row in rows} == {"ok"}


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.2-1b"])
@pytest.mark.parametrize("op", cases.OPS)
def test_plans_are_cold_and_long(op, model):
    case = cases.make(op, model)
    plan = gpu.plan(case)
    one = gpu.streamed_bytes(case)
    assert plan.copies <= plan.calls
    assert plan.copies * one >= 4 * 60e6 and plan.copies * one <= 24 << 30
    assert plan.calls * plan.passes * (case.cost.floor_us(4000) + gpu.LAUNCH_US) >= gpu.CHAIN_US
    assert gpu.plan(case, 2, 1) == gpu.Plan(2, 2, 1)


def test_streamed_bytes():
    case = cases.make("down", "tiny")
    assert (
        gpu.streamed_bytes(case)
        == jax.eval_shape(case.streamed, jax.random.key(0)).rows.size * jnp.dtype("bfloat16").itemsize
    )
