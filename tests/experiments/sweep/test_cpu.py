"""The sweep without a GPU, end to end on a small grid."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels as pk
from experiments.bench import cases, tile_bench
from experiments.bench import log as logs
from experiments.sweep import __main__ as sweep
from experiments.sweep import cpu
from tokenspeed.measure import read_ceiling

ROOT = Path(__file__).resolve().parents[3]
COMMAND = "python -m experiments.sweep"
KINDS = ("feasible_tiles", "lowered_tile", "interpreted_tile", "xla_on_cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sweep, "gpu_here", lambda: None)
    monkeypatch.setattr(cpu, "CPU_SECONDS", 0.001)
    monkeypatch.setattr(read_ceiling, "cpu_read_ceiling_gbps", lambda: 20.0)


def of_kind(records, kind):
    return [found for found in records if found["kind"] == kind]


@pytest.mark.slow
def test_end_to_end(make_options, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    options = make_options(
        ops=("out", "attention"), lower_tiles=1, interpret_tiles=1, interpret_context=32, plots=str(tmp_path / "plots")
    )
    assert sweep.run(options, COMMAND) == 0
    records = logs.read(options.results)
    assert [found["kind"] for found in records] == [kind for kind in KINDS for _ in ("out", "attention")]
    for found in records:
        assert found["status"].startswith("ok (")  # and never 'ok', which is a kernel's on a GPU
        assert found["command"] == COMMAND and found["date"] and found["sources"]
        assert found["context"] == (None if found["op"] == "out" else 32 if "error" in found else 80)
        # No time of a kernel: no kind of these has a field for one.
        assert not set(found) & {"median_us", "p10_us", "p90_us", "achieved_gbps", "percent_of_ceiling"}
    for found in of_kind(records, "interpreted_tile"):
        assert found["error"] <= 1.5 * found["error_xla"] + 1e-5
    for found in of_kind(records, "feasible_tiles"):
        assert set(found["feasible"]) == {"a100", "h100", "h200", "b200"} and found["tiles"] is None
    for found in of_kind(records, "lowered_tile"):
        assert found["feasible"] == dict.fromkeys(("a100", "h100", "h200", "b200"), "") and found["compile_s"] > 0
    for found in of_kind(records, "xla_on_cpu"):
        assert found["ceiling_gbps"] == 20 and found["xla_us"] > 0
        assert found["bytes"] == cases.of_record(found).xla.cost.bytes
    out = capsys.readouterr().out
    for words in ("no kernel is timed", "nothing was run", "not timed", "no Pallas kernel is in this table", "2 of a"):
        assert words in out
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {"out-feasible.png", "attention-feasible.png", "roofline-cpu-xla.png"}


@pytest.mark.slow
def test_a_second_start_resumes(make_options, monkeypatch):
    options = make_options(cpu_models=())
    done = tile_bench.Bench.check
    calls = []

    def interrupted(self, *arguments):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return done(self, *arguments)

    monkeypatch.setattr(tile_bench.Bench, "check", interrupted)
    assert sweep.run(options, COMMAND) == 130
    first = logs.read(options.results)
    assert [found["kind"] for found in first] == ["feasible_tiles", "lowered_tile", "lowered_tile", "interpreted_tile"]
    assert sweep.run(options, COMMAND) == 0
    records = logs.read(options.results)
    assert records[:4] == first and [found["kind"] for found in records[4:]] == ["interpreted_tile"]


def test_the_time_limit_leaves_the_rest(make_options, capsys):
    assert sweep.run(make_options(cpu_models=(), time_limit_s=1e-9), COMMAND) == 0
    assert "Time limit reached with 5 to go" in capsys.readouterr().out


def test_the_reasons_why_tiles_are_infeasible_are_counted(make_options, capsys):
    options = make_options(models=("llama-3.1-8b",), rows=(8,), cpu_models=(), lower_tiles=1, interpret_rows=())
    assert sweep.run(options, COMMAND) == 0
    (found,) = of_kind(logs.read(options.results), "feasible_tiles")
    case = cases.make("out", "llama-3.1-8b", rows=8)
    for key, counted in found["feasible"].items():
        space = case.known.search_space(case.shape)
        verdicts = [case.known.feasible(tile, case.shape, pk.DEVICES[key]) for tile in space]
        assert counted["feasible"] == sum(map(bool, verdicts)) and counted["of"] == len(verdicts)
        assert sum(counted["reasons"].values()) == counted["of"] - counted["feasible"]
    assert "a100: shared memory" in capsys.readouterr().out


def test_a_tile_that_does_not_lower_is_a_record(make_options, monkeypatch, capsys):
    def fail(*_):
        raise NotImplementedError("no lowering rule\nfor this")

    monkeypatch.setattr(cpu, "lower", fail)
    options = make_options(cpu_models=(), interpret_rows=())
    assert sweep.run(options, COMMAND) == 0
    tried = of_kind(logs.read(options.results), "lowered_tile")
    assert [found["status"] for found in tried] == ["lowering failed: NotImplementedError: no lowering rule"] * 2
    assert "0 of a sample of 2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_tile_that_is_wrong_is_a_record(make_options, monkeypatch, capsys):
    out = pk.out

    @functools.wraps(out)
    def spoilt(*args, **how):
        right = out(*args, **how)
        return jax.tree.map(lambda x: x * jnp.nan, right) if how["implementation"] == "interpret" else right

    monkeypatch.setattr(pk, "out", spoilt)
    options = make_options(cpu_models=(), lower_tiles=1, interpret_tiles=1)
    assert sweep.run(options, COMMAND) == 0
    (found,) = of_kind(logs.read(options.results), "interpreted_tile")
    assert found["status"].startswith("wrong: relative RMS error nan")
    assert found["error"] is None and found["error_xla"] > 0, "JSON has no NaN"
    assert "relative RMS error nan" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("op", cases.OPS)
def test_lowering_makes_a_triton_call(op, device):
    case = cases.make(op, "llama-3.2-1b")
    text = cpu.lower(case, case.known.default_tiles(case.shape, device), device)
    assert "triton" in text


@pytest.mark.slow
def test_control_c(tmp_path):
    path = tmp_path / "records.jsonl"
    command = [
        sys.executable, "-m", "experiments.sweep", "--config=tiles.py", "--models=ragged", "--ops=out",
        "--cpu_models=", "--interpret_tiles=0", f"--results={path}", "--plots=",
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
    assert len(logs.read(path)) >= 3


@pytest.mark.slow
def test_pages_go_through_every_stage(make_options, capsys):
    """A context of 40 ends inside the third page of 16."""
    options = make_options(
        ops=("attention",), page_sizes=(16,), lower_tiles=1, interpret_tiles=2, interpret_context=40
    )  # fmt: skip
    assert sweep.run(options, COMMAND) == 0
    records = logs.read(options.results)
    assert {found["kind"] for found in records} == set(KINDS) and {found["page_size"] for found in records} == {16}
    assert all(found["status"].startswith("ok (") for found in records)
    assert "40 pages of 16" in capsys.readouterr().out
