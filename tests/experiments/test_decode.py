"""The decode benchmark: its rows, and that what does not count says so."""

import functools
import gc
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compilations, decode, decode_case, decode_options, report
from experiments.decode_loop import Decoder, Workload
from experiments.decode_options import Options
from experiments.options import UsageError
from tests.experiments.small import CONFIG, SMALL, decoder_of
from tokenspeed import memory

FIELDS = {
    "op", "model", "dtype", "batch", "rows", "context", "implementation", "status", "ms_per_token", "ms_p5", "ms_p95",
    "xla_ms_per_token", "tokens_per_s", "bytes", "achieved_gbps", "ceiling_gbps", "percent_of_ceiling",
    "percent_of_datasheet", "floor_ms", "samples", "compilations", "tokens_checked", "tokens_agree_with_xla",
    "ms_by_compilation", "steps", "device", "driver", "clocks", "jax", "kernels", "commit", "dirty", "command", "date",
}  # fmt: skip


@pytest.fixture
def time_is(monkeypatch):
    """Gives every timed call the seconds of a function of its number; the call itself is real."""

    def patch(seconds):
        real, calls = decode_case.timed, []

        def timed(program, *arguments):
            result, _ = real(program, *arguments)
            calls.append(program)
            return seconds(len(calls) - 1, result)

        monkeypatch.setattr(decode_case, "timed", timed)
        return calls

    return patch


@pytest.fixture
def made_once(monkeypatch):
    """A model is made once for all tests."""
    monkeypatch.setattr(decode, "Decoder", decoder_of)


@pytest.fixture
def steady(time_is):
    return time_is(lambda call, result: (result, 0.003))


@pytest.fixture
def run(tmp_path, monkeypatch, made_once):
    """Runs the command on the small model, and returns its exit status and the rows in the file."""
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    monkeypatch.setattr(decode.measure, "read_ceiling_gbps", lambda: 10.0)
    path = tmp_path / "rows.jsonl"
    given = dict(models=tmp_path / "small.json", contexts=20, steps=3, sequences=2, repeats=2, results=path, picture="")

    def run(**options):
        arguments = [f"--config.{name}={value}" for name, value in (given | options).items()]
        status = decode.main(["decode", "--config=decode.py", *arguments])
        return status, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return run


@pytest.fixture
def two(monkeypatch):
    """XLA's program under two names, since no kernel is timed without a GPU; `given` may fail or change it."""
    monkeypatch.setattr(decode_options, "implementations", lambda options: ("triton", "xla"))
    real = Workload.compiled
    monkeypatch.setattr(Workload, "compiled", lambda self, name: real(self, "xla"))
    return real


# --- rows


def test_rows(run, steady, capsys):
    status, rows = run(batches="1,2", dtypes="bf16")
    assert status == 0 and [row["batch"] for row in rows] == [1, 2]
    for row in rows:
        assert set(row) == FIELDS and row["status"] == "ok" and row["implementation"] == "xla"
        assert (row["op"], row["model"], row["rows"]) == ("decode", "small", row["batch"])
        assert row["ms_per_token"] == row["ms_p5"] == row["ms_p95"] == row["xla_ms_per_token"] == 1.0
        assert row["tokens_per_s"] == 1000 * row["batch"] and row["samples"] == 4 and row["steps"] == 3
        assert row["dtype"] == "bf16"
        needed = memory.decode_bytes(CONFIG, dtype="bfloat16", context=row["context"] + 2, batch=row["batch"])
        assert row["bytes"] == needed, "the steps see 1 to 3 keys more than the context"
        assert row["ceiling_gbps"] == 10 and row["floor_ms"] == pytest.approx(needed / 10e6, abs=1e-6)
        assert row["percent_of_ceiling"] == pytest.approx(100 * row["floor_ms"], abs=0.01)
        assert row["tokens_checked"] == row["tokens_agree_with_xla"] == 2 * 3 * row["batch"]
        assert row["percent_of_datasheet"] is None and row["device"].startswith("cpu")
        assert row["command"].startswith("python -m experiments.decode --config=decode.py --config.models=small.json")
    out = capsys.readouterr().out
    assert out.count("tokens checked; ok") == 2 and "10.0 GB/s" in out and "ms/token (p5 to p95)" in out
    assert [row["dtype"] for row in run()[1]] == ["bf16", "bf16", "f32"], "a second run appends"


def test_implementations_take_turns_and_are_compared(run, two, time_is, capsys):
    calls = time_is(lambda call, result: (result, 0.003 if calls[call] is calls[0] else 0.006))
    status, (fused, xla) = run(dtypes="f32")
    assert status == 0 and len(calls) == 2 + 2 * 4
    turns = [[calls.index(program) for program in calls[i : i + 2]] for i in range(0, 10, 2)]
    assert turns[0] == [0, 1] and {tuple(sorted(turn)) for turn in turns} == {(0, 1)}
    assert [1, 0] in turns, "in an order that changes: places in memory change in turn as well"
    assert (fused["implementation"], xla["implementation"]) == ("triton", "xla")
    assert (fused["ms_per_token"], fused["xla_ms_per_token"], xla["ms_per_token"]) == (1.0, 2.0, 2.0)
    assert fused["tokens_agree_with_xla"] == fused["tokens_checked"] == 6
    assert "6 of them XLA's too" in capsys.readouterr().out


def test_every_compilation_is_timed(run, two, time_is):
    programs = []

    def seconds(call, result):
        if call >= 4:  # the first ones load the programs
            programs.append(calls[-1])
        return result, 0.0030 if calls[-1] in calls[:1] + calls[2:3] else 0.0032

    calls = time_is(seconds)
    _, (fused, xla) = run(compilations=2)
    assert len(set(map(id, programs))) == 4 and {*programs[:4]} == {*programs[4:8]}, "all four"
    for row in (fused, xla):
        assert (row["compilations"], row["ms_by_compilation"]) == (2, [1.0, 1.066667])
        assert row["samples"] == 8 and 1.0 < row["ms_per_token"] < 1.066667 and row["status"] == "ok"


def test_two_compilations_may_draw_other_tokens(run, time_is):
    def other_tokens(call, result):
        state, tokens, logits = result
        return (state, tokens.at[1:].add(calls[call] in calls[1:2]), logits), 0.003

    calls = time_is(other_tokens)
    (_, (row,)) = run(compilations=2)
    assert row["status"] == "ok" and row["tokens_checked"] == 6


def test_tokens_that_are_not_those_of_xla_are_no_fault(run, two, time_is):
    def other_tokens(call, result):
        state, tokens, logits = result
        return (state, tokens.at[1:].add(calls[call] is calls[0]), logits), 0.003

    calls = time_is(other_tokens)
    _, (fused, xla) = run()
    assert fused["status"] == xla["status"] == "ok" and xla["tokens_agree_with_xla"] == 6
    assert (fused["tokens_checked"], fused["tokens_agree_with_xla"]) == (6, 2)


def test_a_model_leaves_the_device(run, steady, monkeypatch):
    monkeypatch.setattr(decode, "Decoder", Decoder)
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    run()
    assert sum(array.nbytes for array in jax.live_arrays()) <= before


# --- what does not count


def _compiles(call, result):
    if call == 3:
        jax.jit(lambda x: x * 3.5)(np.float32(1))
    return result, 0.003


def _draws_other_tokens(call, result):
    state, tokens, logits = result
    return (state, tokens + (call == 4), logits), 0.003


def _is_not_finite(call, result):
    state, tokens, logits = result
    return (state, tokens, logits * (jnp.nan if call == 2 else 1)), 0.003


@pytest.mark.parametrize(
    "happens, status",
    [
        (_compiles, "void: something was compiled during timing"),
        (_draws_other_tokens, "void: the tokens of two runs of a sequence differ"),
        (_is_not_finite, "void: logits that are not finite"),
        (lambda call, result: (result, 0.003 * (1 + 0.1 * (call == 2))), "ok"),
        (lambda call, result: (result, 0.003 * (1 + 0.2 * (call == 2))), r"void: \(p95 - p5\) / median is 17.0%"),
    ],
    ids=["compiles", "tokens", "nan", "narrow", "wide"],
)
def test_void(run, time_is, happens, status, capsys, request):
    time_is(happens)
    jnp.zeros(1) + 1, jnp.zeros(1) * jnp.nan  # what the functions above do is compiled before
    _, (row,) = run()
    assert re.match(status, row["status"]), row["status"]
    assert row["ms_per_token"] >= 1.0
    if status != "ok":
        out = capsys.readouterr().out
        assert row["status"] in out
        assert re.search(r"small +f32 +1 +20 +xla +\S+ +- +- +- +- ", out), "the table has no figures of it"


def test_compilations_are_counted():
    function = jax.jit(lambda x: x * 2.5)
    with compilations.counted() as seen:
        function(np.float32(1))
    assert any("backend_compile" in event for event in seen)
    with compilations.counted() as seen:
        function(np.float32(2))
    jax.jit(lambda x: x * 4.5)(np.float32(1))
    assert seen == []


def test_what_fails_is_a_row_and_the_run_goes_on(run, two, steady, monkeypatch):
    def compiled(self, name):
        if self.context == 30 and name == "triton":
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore lines")
        return two(self, "xla")

    monkeypatch.setattr(Workload, "compiled", compiled)
    status, rows = run(contexts="30,20")
    assert status == 0 and len(rows) == 4 and all(set(row) == FIELDS for row in rows)
    failed = rows.pop(0)
    assert failed["status"] == "compiling failed: RuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert failed["ms_per_token"] is failed["tokens_agree_with_xla"] is None and failed["samples"] == 0
    assert all(row["status"] == "ok" and row["ms_per_token"] == 1.0 for row in rows)


def test_a_call_that_fails_while_it_is_timed(run, two, time_is):
    def fails(call, result):
        if call == 4:  # the second sample of the first implementation
            raise ValueError("no")
        return result, 0.003

    time_is(fails)
    _, (fused, xla) = run()
    assert fused["status"] == "running failed: ValueError: no" and fused["ms_per_token"] is None
    assert xla["status"] == "ok" and xla["samples"] == 4


def test_a_model_that_cannot_be_made(run, steady, tmp_path, monkeypatch):
    (tmp_path / "large.json").write_text(json.dumps(SMALL | dict(hidden_size=64)))

    def make(config, dtype, seed):
        if config.d_model == 64:
            raise MemoryError("too large")
        return decoder_of(config, dtype, seed)

    monkeypatch.setattr(decode, "Decoder", make)
    _, rows = run(models=f"{tmp_path / 'large.json'},{tmp_path / 'small.json'}")
    assert [row["status"] for row in rows] == ["making the model failed: MemoryError: too large", "ok"]


def test_an_interruption_loses_nothing(run, time_is, capsys):
    def interrupted(call, result):
        if call == 7:
            raise KeyboardInterrupt
        return result, 0.003

    time_is(interrupted)
    status, rows = run(contexts="20,30")
    assert status == 130 and [row["context"] for row in rows] == [20]
    assert "Interrupted" in capsys.readouterr().out


# --- the command line


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(model="x"), "config: unknown 'model'; did you mean models"),
        (dict(models="llama-3.2-1B"), "models: unknown 'llama-3.2-1B'; did you mean llama-3.2-1b"),
        (dict(models=__file__), "models: .*test_decode.py: expected JSON"),
        (dict(dtypes="int3"), "dtypes: unknown 'int3'; expected one of bf16, f16, f32"),
        (dict(implementations="triton"), "implementations: 'triton' needs an NVIDIA GPU; 'xla' runs here"),
        (dict(implementations="interpret"), "implementations: unknown 'interpret'; "),
        (dict(batches=17), "batches: expected 1 to 16, got 17"),
        (dict(contexts=510), "contexts: 510 and 3 steps more are not in the 512 positions"),
        (dict(contexts=0), "contexts: expected 1 or more, got 0"),
        (dict(batches=""), "batches: expected at least one"),
        (dict(steps=0), "steps: expected 1 or more, got 0"),
        (dict(seed=2**32), "seed: expected 0 to 4294967295, got 4294967296"),
        (dict(repeats=1), "repeats: expected 2 or more, got 1"),
        (dict(compilations=-1), "compilations: expected 0 or more, got -1"),
        (dict(picture="a.svg"), "picture: expected a path that ends in .png, got 'a.svg'"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run, options, message, capsys):
    assert run(**options) == (2, [])
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.search(f"error: {message}", err), err


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="what is chosen without a GPU")
def test_what_suits_a_machine_without_a_gpu():
    options = Options()
    assert list(decode_options.configs(options)) == ["qwen2.5-0.5b"]
    assert decode_options.implementations(options) == ("xla",) and decode_options.dtypes(options) == ("f32",)


def test_models_by_name_and_by_path(tmp_path):
    options = functools.partial(Options, contexts=(20,))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(SMALL))
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    paths = "llama-3.1-8b", str(tmp_path / "mine" / "config.json"), str(tmp_path / "small.json")
    found = decode_options.configs(options(models=paths))
    assert list(found) == ["llama-3.1-8b", "mine", "small"] and found["mine"] == CONFIG
    (tmp_path / "mine.json").write_text(json.dumps(SMALL | dict(hidden_size=64)))
    with pytest.raises(UsageError, match="models: two that differ are called mine"):
        decode_options.configs(options(models=(paths[1], str(tmp_path / "mine.json"))))


def test_a_picture_and_traces(run, two, steady, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture, profile = tmp_path / "{device}.png", tmp_path / "traces"
    run(picture=picture, profile=profile)
    assert (tmp_path / "cpu.png").stat().st_size > 5000
    assert f"Picture: {tmp_path / 'cpu.png'}" in capsys.readouterr().out
    traces = sorted(profile.rglob("*.xplane.pb"))
    assert len(traces) == 2 and traces[0].is_relative_to(profile / "small-f32-batch1-context20" / "triton")
    for trace in traces:
        assert b"decode_step/embedding" in trace.read_bytes() and b"head_argmax" in trace.read_bytes()


def test_without_matplotlib_the_rows_are_there(run, steady, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, rows = run(picture=tmp_path / "a.png")
    assert status == 0 and rows[0]["status"] == "ok" and not (tmp_path / "a.png").exists()
    assert "pip install '.[plot]'" in capsys.readouterr().out


# --- the README


def generated(**fields):
    row = dict(
        op="generate", model="llama-3.2-1b", rows=1, context=128, prompt_tokens=128, ttft_ms=12.34, samples=1,
        decode_tokens_per_s=1234.5, percent_of_ceiling=77.7, read_ceiling_gbps=4100.0, implementation="triton",
        dtype="bfloat16", status="ok", device="NVIDIA H200", driver="580.1", jax="0.11.2", commit="d" * 40,
        date="2026-01-03T00:00:00Z", command="python -m experiments.generate",
    )  # fmt: skip
    return row | fields


def decoded(**fields):
    row = dict.fromkeys(FIELDS) | dict(
        op="decode", model="llama-3.1-8b", dtype="bf16", batch=1, rows=1, context=1024, implementation="triton",
        status="ok", ms_per_token=4.0, ms_p5=3.9, ms_p95=4.1, xla_ms_per_token=5.0, tokens_per_s=250.0, floor_ms=3.6,
        bytes=15_000_000_000, achieved_gbps=3750.0, ceiling_gbps=4150.0, percent_of_ceiling=90.4, samples=20, steps=127,
        device="NVIDIA H200", driver="580.1", jax="0.11.2", commit="c" * 40, date="2026-01-02T03:04:05Z",
        command="python -m experiments.decode --config=decode.py",
    )  # fmt: skip
    return row | fields


def test_the_report_shows_decode_first(tmp_path, make_row):
    rows = [
        make_row(),
        generated(),
        generated(date="2026-01-01T00:00:00Z", ttft_ms=99.0),
        decoded(ms_per_token=9.0, date="2026-01-02T01:00:00Z"),
        decoded(),
        decoded(implementation="xla", ms_per_token=5.0),
        decoded(context=8192, implementation="xla", ms_per_token=5.5, xla_ms_per_token=5.5),
        decoded(model="tiny", device="cpu AMD EPYC", implementation="xla"),
    ]
    text = report.render(rows)
    assert text.index("| model | dtype | batch | context |") < text.index("| TTFT ms |") < text.index("| op | model |")
    fused = "| llama-3.1-8b | bf16 | 1 | 1024 | triton | 3.600 | 4.000 (3.900 to 4.100) | 250.0 | 3750 | 90.4 | 5.000 |"
    assert f"{fused} 1.25 |" in text
    assert "| 8192 | xla | 3.600 | 5.500" in text and "| 1024 | xla |" not in text, "beside another, XLA is a column"
    assert "| llama-3.2-1b | bfloat16 | 128 | triton | 12.3 | 1234.5 | 77.7 |" in text
    assert "9.000" not in text and "99.0" not in text, "the newest row counts"
    assert "status" not in text and "cpu" not in text
    assert "ceiling measured in the same run 4150 GB/s" in text and "4100 GB/s" in text and "cccccccccccc" in text


def test_the_report_gives_no_figures_of_what_is_void(make_row):
    rows = [
        decoded(status="void: the tokens of two runs of a sequence differ"),
        decoded(implementation="xla", ms_per_token=5.0),
        decoded(context=8192, status="compiling failed: x", ms_per_token=None, achieved_gbps=None),
        generated(status="void: the tokens of two runs differ"),
    ]
    text = report.render(rows)
    assert "| triton | 3.600 | - | - | - | - | - | - | void: the tokens of two runs of a sequence differ |" in text
    assert "| 8192 | triton | 3.600 | - | - | - | - | - | - | compiling failed: x |" in text
    assert "| 1024 | xla | 3.600 | 5.000 (" in text
    assert "| triton | - | - | - | void: the tokens of two runs differ |" in text


def test_the_report_draws_decode(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "README.md").write_text(f"{report.BEGIN}\n{report.END}")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (decoded(), generated())))
    pages = ["--readme", str(tmp_path / "README.md"), "--ledger", str(tmp_path / "LEDGER.md")]
    where = [*pages, "--results", str(tmp_path)]
    assert report.main([*where, "--pictures"]) == 0 and report.main([*where, "--check"]) == 0
    assert [path.name for path in (tmp_path / "h200").iterdir()] == ["decode.png"]
