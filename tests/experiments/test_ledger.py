"""The ledger on a small model: every lever computes the same step, and its row says so."""

import argparse
import dataclasses
import pathlib
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import counters, ledger, ledger_tables, oracle, row_log
from experiments.decode_case import Found
from experiments.decode_loop import Decoder, Workload
from experiments.ledger_case import compared
from experiments.levers import LEVERS, SHIPPED, Step
from experiments.models import config_of
from experiments.report import RESULTS
from pallas_kernels.common.devices import DEVICES

CONFIG = dataclasses.replace(
    config_of("llama-3.2-1b"), d_model=32, d_ff=48, num_heads=2, num_kv_heads=1, head_dim=16, vocab_size=60,
    num_layers=1, windows=(12,),
)  # fmt: skip
ARGUMENTS = argparse.Namespace(steps=2, sequences=2, repeats=2, seed=0)


def step_of(**fields) -> Step:
    return Step(
        **dict(
            model="llama-3.2-1b", config=CONFIG, batch=1, context=20, dtype="f32", ceiling_gbps=4000.0,
            device=DEVICES["h200"],
        ) | fields
    )  # fmt: skip


def on_cpu(lever):
    """The lever with its kernels interpreted, and XLA's options for a GPU left away."""
    how = "interpret" if lever.implementation == "triton" else lever.implementation
    return dataclasses.replace(lever, implementation=how, compiler_options={})


KERNELS = [lever for lever in LEVERS if not (lever.left_out or lever.compiler_options)]
"""The levers that change what an interpreter runs."""


@pytest.fixture(scope="module")
def rows():
    levers = [on_cpu(lever) for lever in (SHIPPED, *KERNELS)]
    return list(ledger.measured(step_of(), levers, ARGUMENTS))


def test_every_lever_computes_the_same_step(rows):
    assert [row["lever"] for row in rows] == ["", *(lever.name for lever in KERNELS)]
    for row in rows:
        assert row["tokens_as_shipped"] == row["tokens_checked"] == 4, row["lever"]
        # float32 sums in another order, against float64
        assert 0 < row["drift"] < 2e-6, row["lever"]
        assert row["drift_kl"] < 1e-10 and row["drift_max"] < 2e-6, row["lever"]


def test_what_is_undone_is_undone(rows):
    """The variants are other programs: their rounding differs from the fused kernels'."""
    drift = {row["lever"]: row["drift"] for row in rows}
    for lever in ("norm + rotation + cache write in qkv", "norm + activation in gate_up", "attention in one launch"):
        assert drift[lever] != drift[""], lever


def test_table_shows_the_shipped_step_first_and_the_newest_run(rows):
    old = [row | dict(device="NVIDIA H200", date="2026-01-01", status="old") for row in reversed(rows)]
    new = [row | dict(device="NVIDIA H200", date="2026-01-02", status="ok") for row in rows]
    header, lines = ledger_tables.ledger([*new, *old])
    assert len(lines) == len(rows) and {len(line) for line in lines} == {len(header)}
    assert lines[0][header.index("lever")] == "as shipped"
    assert {line[-1] for line in lines} == {"ok"}


def test_table_shows_what_the_run_before_gave(rows):
    first, lever = (dict(rows[i], device="NVIDIA H200", status="ok") for i in (0, 2))
    runs = [
        [first | dict(date=f"2026-01-0{day}", ms_per_token=ms), lever | dict(date=f"2026-01-0{day}", gain_us=gain)]
        for day, ms, gain in ((3, 3.8, 40.0), (1, 5.0, 70.0), (2, 4.0, 60.0))
    ]
    header, lines = ledger_tables.ledger([row for run in runs for row in run])
    assert [line[header.index("the run before")] for line in lines] == ["4.000 ms", 60.0]
    assert lines[1][header.index("gives µs")] == 40.0
    _, lines = ledger_tables.ledger(runs[0])
    assert [line[header.index("the run before")] for line in lines] == ["-", "-"]


def test_a_batch_stands_by_itself(rows):
    known = [row | dict(device="NVIDIA H200", date="2026-01-01", status="ok") for row in rows]
    more = [row | dict(batch=16, rows=16) for row in known[:2]]
    header, lines = ledger_tables.ledger([*more, *known])
    batches = [line[header.index("batch")] for line in lines]
    assert batches == [1] * len(known) + [16] * len(more)
    shipped = [batch for batch, line in zip(batches, lines) if line[header.index("lever")] == "as shipped"]
    assert shipped == [1, 16]


def test_a_lever_that_is_no_more_stays_in_the_table(rows):
    gone = dict(rows[1], lever="magic", device="NVIDIA H200", date="2026-01-01T00:00:00Z")
    header, lines = ledger_tables.ledger([gone])
    assert [line[header.index("lever")] for line in lines] == ["magic (removed)"]


def test_a_gain_needs_two_times_that_count():
    drawn = {(0, 0): np.zeros((2, 1), np.int32)}
    shipped, slower = Found(step_ms=[1.0, 1.0], drawn=drawn), Found(step_ms=[1.5, 1.5], drawn=drawn)
    (lever, tried) = LEVERS[0], next(lever for lever in LEVERS if lever.tried)
    assert ledger.figures(lever, slower, shipped)["gain_us"] == pytest.approx(500)
    assert ledger.figures(tried, slower, shipped)["gain_us"] == pytest.approx(-500)
    slower.void("something ran beside it")
    assert "gain_us" not in ledger.figures(lever, slower, shipped)


def test_predictions_by_the_sweep():
    step = step_of(config=config_of("llama-3.2-1b"), context=1024, dtype="bf16")
    lever = next(lever for lever in LEVERS if lever.name == "tuned tiles")
    assert lever.predicted(step).us is None  # without a sweep nothing is known
    swept = [row for row in row_log.read(RESULTS / "sweep-h200.jsonl") if row["model"] == step.model]
    assert 0 <= lever.predicted(dataclasses.replace(step, sweep=swept)).us < 100


@pytest.mark.parametrize("bad", ["--models=gpt-2", "--context=0", "--levers=magic", "--repeats=1", "--batch=17"])
def test_bad_arguments_are_one_line(bad, capsys):
    assert ledger.main([bad]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_oracle_is_the_model():
    """One more token after a prompt, in float64, is the last position of the whole model in float32."""
    decoder = Decoder(CONFIG, jnp.float32, 0)
    model = decoder.model(decoder.weights)
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 15)).astype(np.int32)
    workload = Workload(decoder, batch=2, context=14, steps=1)
    positions = jnp.broadcast_to(jnp.arange(14, dtype=jnp.int32), (2, 14))
    _, caches = model.prefill(workload.fresh(0).caches, tokens[:, :14], positions, workload.rope, capacity=14)
    found = oracle.logits(model, caches, jnp.asarray(tokens[:, 14]), jnp.full((2,), 14, jnp.int32))
    assert found.dtype == np.float64
    # both round in float32 somewhere: the model everywhere, the oracle in the cache
    np.testing.assert_allclose(found, np.asarray(model(jnp.asarray(tokens)))[:, -1], rtol=0, atol=2e-6)


def test_compared():
    truth = np.log([[0.5, 0.25, 0.25]])
    found = compared(np.log([[0.25, 0.5, 0.25]]), truth)
    assert found["drift_kl"] == pytest.approx(0.25 * np.log(2)) and found["drift_max"] == pytest.approx(np.log(2))
    assert compared(truth, truth)["drift"] == 0


def test_counters_are_summed_by_kernel():
    units = {"Kernel Name": "", counters.READ: "Mbyte", counters.WRITTEN: "Kbyte", counters.TIME: "us"}
    lines = [("qkv(int)", "1.5", "2", "7"), ("head", "1,000.0", "0", "250"), ("qkv(int)", "0.5", "1", "6")]
    table = [units, *({**units, **dict(zip(units, line, strict=True))} for line in lines)]
    head, qkv = counters.kernels(table)
    assert head["kernel"] == "head" and head["read_bytes"] == 10**9
    assert qkv == dict(kernel="qkv", calls=2, read_bytes=2 * 10**6, written_bytes=3000, alone_us=13)


def test_counters_of_several_steps_are_told_apart():
    units = {"Kernel Name": ""}
    names = ["before(float*)", "mark(float*)", "qkv", "head", "mark(float*)", "loop_add_fusion"]
    steps = counters.by_step([units, *({"Kernel Name": name} for name in names)])
    assert [[line["Kernel Name"] for line in step] for step in steps] == [["", "qkv", "head"], ["", "loop_add_fusion"]]


def test_the_profiler_follows_steps_that_were_compiled_before(monkeypatch):
    """First the steps alone, then the same below the profiler, with one cache of programs."""
    ran, table = [], '"Kernel Name","a"\n"","byte"\n"mark","1"\n'

    def run(command, *, env, **how):
        ran.append((command, env["JAX_COMPILATION_CACHE_DIR"]))
        if command[0] == "ncu":
            pathlib.Path(command[command.index("--log-file") + 1]).write_text("==PROF== noise\n" + table)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(counters.subprocess, "run", run)
    arguments = counters.parser().parse_args(["--levers=argmax in the head"])
    lines = counters.profiled("llama-3.2-1b", arguments)
    assert [line["Kernel Name"] for line in lines] == ["", "mark"]
    (plain, cache), (profiled, same) = ran
    assert cache == same and profiled[-len(plain) :] == plain and profiled[0] == "ncu" != plain[0]
    assert "--step" in plain and "--levers=argmax in the head" in plain


def test_steps_that_fail_are_not_profiled(monkeypatch):
    ran = []

    def run(command, **how):
        ran.append(command)
        return subprocess.CompletedProcess(command, 1, "", "it broke\nfor this reason\n")

    monkeypatch.setattr(counters.subprocess, "run", run)
    with pytest.raises(row_log.ResultsError, match=r"llama-3.2-1b: the steps without the profiler: for this reason"):
        counters.profiled("llama-3.2-1b", counters.parser().parse_args([]))
    assert len(ran) == 1


@pytest.mark.parametrize("bad", ["--models=gpt-2", "--levers=magic"])
def test_bad_arguments_of_the_counters_are_one_line(bad, capsys):
    assert counters.main([bad]) == 2
    assert capsys.readouterr().err.count("\n") == 1
