"""The decode benchmark from its command line: records, what fails, what is refused, what is drawn and traced."""

import dataclasses
import functools
import gc
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import log
from experiments.bench import options as command_line
from experiments.bench.device import DeviceLost
from experiments.bench.errors import UsageError
from experiments.bench.workload import Decoder, Workload, mean_bytes
from experiments.decode import __main__ as decode
from experiments.decode import options as decode_options
from experiments.decode.case import Found
from experiments.decode.options import Options
from tests.experiments.decode.small import CONFIG, SMALL, decoder_of


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on the small model, which is made once for all tests; (exit status, records in the file)."""
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    monkeypatch.setattr(decode, "Decoder", decoder_of)
    monkeypatch.setattr(decode, "read_ceiling_gbps", lambda: 10.0)
    path = tmp_path / "records.jsonl"
    given = dict(
        models=tmp_path / "small.json", contexts=20, batches=2, steps=3, sequences=2, repeats=2, results=path,
        picture="",
    )  # fmt: skip

    def run(**options):
        status = decode.main([f"--{name}={value}" for name, value in (given | options).items()])
        return status, log.read(path)

    return run


@pytest.fixture
def two(monkeypatch):
    """XLA's program under two names, since no kernel is timed without a GPU; returns how it is compiled."""
    monkeypatch.setattr(decode_options, "implementations", lambda options: ("triton", "xla"))
    real = Workload.compiled
    monkeypatch.setattr(Workload, "compiled", lambda self, name: real(self, "xla"))
    return real


# --- records


@pytest.mark.slow
def test_records(run, steady, capsys):
    run()
    out = capsys.readouterr().out
    assert out.count("tokens checked; ok") == 1 and "10.0 GB/s" in out and "ms/token (p5 to p95)" in out
    status, records = run()
    assert status == 0 and len(records) == 2, "a second run appends"
    for one in records:
        assert (one["kind"], one["model"], one["status"], one["implementation"]) == ("decode", "small", "ok", "xla")
        assert one["ms_per_token"] == one["ms_p5"] == one["ms_p95"] == one["xla_ms_per_token"] == 1.0
        assert one["tokens_per_s"] == 2000 and one["samples"] == 4 and one["steps"] == 3
        assert (one["dtype"], one["batch"], one["context"]) == ("f32", 2, 20)
        assert one["compilations"] == 1 and one["ms_by_compilation"] == [1.0]
        needed = mean_bytes(CONFIG, "float32", batch=2, context=20, steps=3)
        assert one["bytes"] == needed
        assert one["ceiling_gbps"] == 10 and one["floor_ms"] == pytest.approx(needed / 10e6, abs=1e-6)  # as rounded
        assert one["percent_of_ceiling"] == pytest.approx(100 * one["floor_ms"], abs=0.01)  # as rounded
        assert one["tokens_checked"] == one["tokens_agree_with_xla"] == 2 * 3 * 2
        assert one["percent_of_datasheet"] is None and one["device"].startswith("cpu")
        assert one["command"].startswith("python -m experiments.decode --models=small.json")
        assert one["sources"] and one["date"]


@pytest.mark.slow
def test_pages_are_cases_whose_tokens_are_those_of_a_contiguous_cache(run, steady, monkeypatch, capsys):
    drawn = {}
    add = Found.add

    def noted(self, sequence, step_ms, tokens, **how):
        drawn.setdefault(id(self), {})[sequence] = tokens
        add(self, sequence, step_ms, tokens, **how)

    monkeypatch.setattr(Found, "add", noted)
    status, records = run(page_sizes="0,16")
    assert status == 0 and [(one["page_size"], one["status"]) for one in records] == [(0, "ok"), (16, "ok")]
    assert records[0]["bytes"] == records[1]["bytes"]
    whole, paged = drawn.values()
    assert len(whole) == 2
    for sequence in whole:
        np.testing.assert_array_equal(whole[sequence], paged[sequence])
    out = capsys.readouterr().out
    assert "batch 2, context 20 pages of 16, xla" in out and "page size" in out


@pytest.mark.slow
def test_caches_in_8_bits_are_cases_of_fewer_bytes(run, steady, capsys):
    status, records = run(kv_dtypes="auto,int8,auto/fp8", page_sizes="16")
    assert status == 0
    assert [(one["kv_dtype"], one["status"]) for one in records] == [
        ("auto", "ok"), ("int8", "ok"), ("auto/fp8", "ok"),
    ]  # fmt: skip
    whole, int8, values = (one["bytes"] for one in records)
    assert whole - int8 == pytest.approx(2 * (whole - values), abs=2)
    assert whole > values > int8 and records[0]["floor_ms"] > records[1]["floor_ms"]
    out = capsys.readouterr().out
    assert "batch 2, context 20 pages of 16, int8, xla" in out and "KV" in out


@pytest.mark.slow
def test_the_caches_of_one_batch_are_on_the_device_at_a_time(run, steady, monkeypatch):
    """With many sequences two of them would not fit."""
    fresh, live = Workload.fresh, []

    def looking(self, sequence):
        if not isinstance(jnp.zeros(()), jax.core.Tracer):
            live.append(sum(array.nbytes for array in jax.live_arrays()))
        return fresh(self, sequence)

    monkeypatch.setattr(Workload, "fresh", looking)
    run(sequences=3, page_sizes="0,16")
    cache = 2 * 2 * (2 * 2 * 128 * 8) * 4  # keys and values of two layers: rows, heads, slots, width, in float32
    assert len(live) > 12 and max(live) - min(live) < cache / 4


def test_two_implementations_are_compared():
    """The record of one has the other's time, and how many of its tokens the other draws too."""
    tokens = {sequence: np.full((3, 1), sequence) for sequence in range(2)}
    plain, fused = Found(), Found()
    for sequence, drawn in tokens.items():
        plain.add(sequence, 2.0, drawn)
        fused.add(sequence, 1.0, drawn + np.arange(3)[:, None] // 2)  # the third token is another
    lead = dict(bytes=5e6, ceiling_gbps=10.0, batch=2)
    found = dict(triton=fused, xla=plain)
    one, other = (decode.figures(lead, name, found) for name in ("triton", "xla"))
    assert (one["ms_per_token"], one["xla_ms_per_token"], other["ms_per_token"]) == (1.0, 2.0, 2.0)
    assert (one["tokens_checked"], one["tokens_agree_with_xla"], other["tokens_agree_with_xla"]) == (6, 4, 6)
    assert (one["tokens_per_s"], one["achieved_gbps"], one["percent_of_ceiling"]) == (2000.0, 5.0, 50.0)
    assert one["status"] == other["status"] == "ok", "tokens that are not XLA's are no fault"
    plain.void("something was compiled during timing")
    assert decode.figures(lead, "triton", found)["xla_ms_per_token"] is None, "what is void is no yardstick"
    alone = decode.figures(lead, "triton", dict(triton=fused))
    assert alone["ms_per_token"] == 1.0 and alone["xla_ms_per_token"] is alone["tokens_agree_with_xla"] is None


@pytest.mark.slow
def test_what_is_void_has_no_figures_in_the_table(run, time_is, capsys):
    time_is(lambda call, result: (result, 0.003 * (1 + 0.2 * (call == 2))))
    _, (one,) = run()
    assert one["status"].startswith("void: (p95 - p5) / median is 17.0%") and one["ms_per_token"] >= 1.0
    out = capsys.readouterr().out
    assert one["status"] in out
    assert re.search(r"small +f32 +2 +20 +\S+ +- +- +- +- +- +xla +void", out)


@pytest.mark.slow
def test_a_model_leaves_the_device_before_the_next_is_made(run, steady, tmp_path, monkeypatch):
    live = []

    def look():
        live.append(sum(array.nbytes for array in jax.live_arrays()))

    monkeypatch.setattr(decode, "Decoder", lambda *arguments: look() or Decoder(*arguments))
    (tmp_path / "other.json").write_text(json.dumps(SMALL))
    gc.collect()
    look()
    run(models=f"{tmp_path / 'small.json'},{tmp_path / 'other.json'}")
    look()
    before, first, second, after = live
    # What numpy still sees of the last case's tokens, 24 bytes a sequence; the model has 78 kB.
    assert first <= before and second < before + 100 and after <= before


# --- what fails


@pytest.mark.slow
def test_what_fails_is_a_record_and_the_run_goes_on(run, two, steady, monkeypatch):
    def compiled(self, name):
        if self.context == 30 and name == "triton":
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore lines")
        return two(self, "xla")

    monkeypatch.setattr(Workload, "compiled", compiled)
    status, records = run(contexts="30,20")
    assert status == 0 and [(one["context"], one["implementation"]) for one in records] == [
        (30, "triton"), (30, "xla"), (20, "triton"), (20, "xla"),
    ]  # fmt: skip
    failed = records.pop(0)
    assert failed["status"] == "compiling failed: RuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert failed["ms_per_token"] is failed["tokens_agree_with_xla"] is None and failed["samples"] == 0
    assert all(one["status"] == "ok" and one["ms_per_token"] == 1.0 for one in records)


@pytest.mark.slow
def test_a_model_that_cannot_be_made(run, steady, tmp_path, monkeypatch):
    (tmp_path / "large.json").write_text(json.dumps(SMALL | dict(hidden_size=64)))

    def make(config, dtype, seed):
        if config.d_model == 64:
            raise MemoryError("too large")
        return decoder_of(config, dtype, seed)

    monkeypatch.setattr(decode, "Decoder", make)
    _, records = run(models=f"{tmp_path / 'large.json'},{tmp_path / 'small.json'}")
    assert [one["status"] for one in records] == ["making the model failed: MemoryError: too large", "ok"]


@pytest.mark.slow
def test_an_interruption_loses_nothing(run, time_is, capsys):
    def interrupted(call, result):
        if call == 7:
            raise KeyboardInterrupt
        return result, 0.003

    time_is(interrupted)
    status, records = run(contexts="20,30")
    assert status == 130 and [one["context"] for one in records] == [20]
    assert "Interrupted" in capsys.readouterr().out


@pytest.mark.slow
def test_a_gpu_that_stops_answering_ends_the_run(run, steady, monkeypatch, capsys):
    def lost():
        raise DeviceLost("RuntimeError: an illegal address")

    def compiled(self, name):
        raise RuntimeError("no")

    monkeypatch.setattr(decode, "probe_device", lost)
    monkeypatch.setattr(Workload, "compiled", compiled)
    status, records = run(contexts="20,30")
    assert status == 1 and [one["context"] for one in records] == [20], "what failed is there"
    assert "stopped answering (RuntimeError: an illegal address)" in capsys.readouterr().out


# --- the command line


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(model="x"), "config: unknown 'model'; did you mean models"),
        (dict(models="llama-3.2-1B"), "models: unknown 'llama-3.2-1B'; did you mean llama-3.2-1b"),
        (dict(models=__file__), "models: .*test_command.py: expected JSON"),
        (dict(dtypes="int3"), "dtypes: unknown 'int3'; expected one of bf16, f16, f32"),
        (dict(implementations="triton"), "implementations: 'triton' needs an NVIDIA GPU; 'xla' runs here"),
        (dict(implementations="interpret"), "implementations: unknown 'interpret'; "),
        (dict(contexts=510), "contexts: 510 and 3 steps more are not in the 512 positions"),
        (dict(contexts=0), "contexts: expected 1 or more, got 0"),
        (dict(page_sizes=-16), "page_sizes: expected 0 or more, got -16"),
        (
            dict(kv_dtypes="fp8,fp16"),
            "kv_dtypes: expected auto, fp8 or int8, or two of them for keys/values, got 'fp16'",
        ),
        (dict(page_sizes=""), "page_sizes: expected at least one"),
        (dict(batches=0), "batches: expected 1 or more, got 0"),
        (dict(batches=""), "batches: expected at least one"),
        (dict(steps=0), "steps: expected 1 or more, got 0"),
        (dict(seed=2**32), "seed: expected at most 4294967295, got 4294967296"),
        (dict(repeats=1), "repeats: expected 2 or more, got 1"),
        (dict(compilations=-1), "compilations: expected 0 or more, got -1"),
        (dict(picture="a.svg"), "picture: expected a path that ends in .png, got 'a.svg'"),
    ],
)
@pytest.mark.skipif(jax.default_backend() == "gpu", reason="what is refused without a GPU")
def test_mistakes_are_one_line_and_write_nothing(run, options, message, capsys):
    assert run(**options) == (2, [])
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.search(f"error: {message}", err), err


@pytest.fixture
def options():
    """Options of configs/decode.py for a short context, with overrides."""
    defaults = command_line.parse([], Options, "decode.py")
    return functools.partial(dataclasses.replace, defaults, contexts=(20,))


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="what is chosen without a GPU")
def test_what_suits_a_machine_without_a_gpu(options):
    assert list(decode_options.configs(options())) == ["qwen2.5-0.5b"]
    assert decode_options.implementations(options()) == ("xla",) and decode_options.dtypes(options()) == ("f32",)
    assert decode_options.compilations(options()) == 1 and decode_options.compilations(options(compilations=2)) == 2


def test_models_by_name_and_by_path(options, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(SMALL))
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    paths = "llama-3.1-8b", str(tmp_path / "mine" / "config.json"), str(tmp_path / "small.json")
    found = decode_options.configs(options(models=paths))
    assert list(found) == ["llama-3.1-8b", "mine", "small"] and found["mine"] == CONFIG
    (tmp_path / "mine.json").write_text(json.dumps(SMALL | dict(hidden_size=64)))
    with pytest.raises(UsageError, match="models: two that differ are called mine"):
        decode_options.configs(options(models=(paths[1], str(tmp_path / "mine.json"))))


# --- the picture and the traces


@pytest.mark.slow
def test_a_picture_and_traces(run, two, steady, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture, profile = tmp_path / "{device}.png", tmp_path / "traces"
    run(picture=picture, profile=profile)
    assert (tmp_path / "cpu.png").stat().st_size > 5000
    assert f"Picture: {tmp_path / 'cpu.png'}" in capsys.readouterr().out
    traces = sorted(profile.rglob("*.xplane.pb"))
    assert len(traces) == 2 and traces[0].is_relative_to(profile / "small-f32-batch2-context20" / "triton")
    for trace in traces:
        assert b"decode_step/embedding" in trace.read_bytes() and b"draw/head" in trace.read_bytes()


@pytest.mark.slow
def test_without_matplotlib_the_records_are_there(run, steady, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, (one,) = run(picture=tmp_path / "a.png")
    assert status == 0 and one["status"] == "ok" and not (tmp_path / "a.png").exists()
    assert "pip install '.[plot]'" in capsys.readouterr().out
