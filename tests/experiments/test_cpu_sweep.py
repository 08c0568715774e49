"""The sweep without a GPU, end to end on a small grid."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import cases, cpu_sweep, row_log, sweep
from experiments.rows import FEASIBLE, INTERPRET, LOWER, XLA_CPU

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("median_us", "p10_us", "p90_us", "achieved_gbps", "percent_of_ceiling")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sweep, "gpu_here", lambda: None)
    monkeypatch.setattr(cpu_sweep, "CPU_SECONDS", 0.001)
    monkeypatch.setattr(cpu_sweep.measure, "cpu_read_ceiling_gbps", lambda: 20.0)


def test_end_to_end(make_options, tmp_path, capsys):
    options = make_options(ops=("out", "attention"), plots=str(tmp_path / "plots"))
    assert sweep.run(options, ["sweep"], False) == 0
    rows = row_log.read(options.results)
    by_mode = {mode: [row for row in rows if row["mode"] == mode] for mode in (FEASIBLE, LOWER, INTERPRET, XLA_CPU)}
    assert {mode: len(found) for mode, found in by_mode.items()} == {FEASIBLE: 2, LOWER: 4, INTERPRET: 4, XLA_CPU: 2}
    assert len(rows) == 12
    for row in rows:
        assert row["status"].startswith("ok (")  # and never 'ok', which is a kernel's on a GPU
        assert all(row[field] is None for field in TIMES)
        assert (row["xla_us"] is not None) == (row["mode"] == XLA_CPU)
        assert row["bytes"] == cases.make(row["op"], "tiny", context=80).cost.bytes
    for row in by_mode[INTERPRET]:
        assert row["error"] <= 1.5 * row["error_xla"] + 1e-5
    for row in by_mode[FEASIBLE]:
        assert set(row["feasible"]) == {"a100", "h100", "h200", "b200"}
    assert all(row["ceiling_gbps"] == 20 for row in by_mode[XLA_CPU])
    out = capsys.readouterr().out
    for words in ("no kernel is timed", "nothing was run", "not timed", "no Pallas kernel is in this table", "4 of a"):
        assert words in out
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {"out-feasible.png", "attention-feasible.png", "roofline-cpu-xla.png"}


def test_a_second_start_resumes(make_options, monkeypatch, capsys):
    options = make_options()
    done = cpu_sweep.gpu.Bench.check
    calls = []

    def interrupted(self, *arguments):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return done(self, *arguments)

    monkeypatch.setattr(cpu_sweep.gpu.Bench, "check", interrupted)
    assert sweep.run(options, ["sweep"], False) == 130
    first = row_log.read(options.results)
    assert [row["mode"] for row in first] == [FEASIBLE, LOWER, LOWER, INTERPRET]
    assert sweep.run(options, ["sweep"], False) == 0
    rows = row_log.read(options.results)
    assert rows[:4] == first and len(rows) == 6


def test_the_reasons_why_tiles_are_infeasible_are_counted(make_options, capsys):
    options = make_options(models=("llama-3.1-8b",), rows=(8,), cpu_models=(), lower_tiles=1, interpret_tiles=1)
    assert sweep.run(options, ["sweep"], False) == 0
    row = row_log.read(options.results)[0]
    case = cases.make("out", "llama-3.1-8b", rows=8)
    for key, counted in row["feasible"].items():
        device = cpu_sweep.DEVICES[key]
        verdicts = [case.tiles.feasible(tile, case.shape, device) for tile in case.tiles.search_space(case.shape)]
        assert counted["feasible"] == sum(map(bool, verdicts)) and counted["of"] == len(verdicts)
        assert sum(counted["reasons"].values()) == counted["of"] - counted["feasible"]
    assert "a100: shared memory" in capsys.readouterr().out


def test_a_tile_that_does_not_lower_is_a_row(make_options, monkeypatch, capsys):
    def fail(*_):
        raise NotImplementedError("no lowering rule\nfor this")

    monkeypatch.setattr(cpu_sweep, "lower", fail)
    options = make_options(cpu_models=(), interpret_tiles=1)
    assert sweep.run(options, ["sweep"], False) == 0
    rows = [row for row in row_log.read(options.results) if row["mode"] == LOWER]
    assert {row["status"] for row in rows} == {"lowering failed: NotImplementedError: no lowering rule"}
    assert "0 of a sample of 2" in capsys.readouterr().out


@pytest.mark.parametrize("op", cases.OPS)
def test_lowering_makes_a_triton_call(op, device):
    case = cases.make(op, "llama-3.2-1b")
    text = cpu_sweep.lower(case, case.tiles.default(case.shape, device), device)
    assert "triton" in text


@pytest.mark.slow
def test_control_c(tmp_path):
    path = tmp_path / "rows.jsonl"
    command = [
        sys.executable, "-m", "experiments.sweep", "--config=tiles.py", "--config.models=tiny", "--config.ops=out",
        "--config.cpu_models=", "--config.interpret_tiles=0", f"--config.results={path}", "--config.plots=",
    ]  # fmt: skip
    environment = os.environ | dict(JAX_PLATFORMS="cpu")
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(600):
            if path.exists() and len(path.read_text().splitlines()) >= 3:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Interrupted" in out and "feasible" in out and "Traceback" not in err
    assert len(row_log.read(path)) >= 3
