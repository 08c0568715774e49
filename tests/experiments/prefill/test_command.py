"""The prefill benchmark from its command line: records, what is void, what fails, what is refused."""

import itertools
import json
import re

import jax
import numpy as np
import pytest

from experiments.bench import log
from experiments.bench.device import DeviceLost
from experiments.prefill import __main__ as prefill
from experiments.prefill import chunk, cost, first_token, found
from experiments.prefill import options as prefill_options
from experiments.prefill.options import Case
from tests.experiments.decode.small import CONFIG, SMALL, decoder_of
from tokenspeed import LLM


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on the small model, which is made once for all tests; (exit status, records in the file)."""
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    monkeypatch.setattr(prefill, "Decoder", decoder_of)
    monkeypatch.setattr(prefill, "read_ceiling_gbps", lambda: 10.0)
    path = tmp_path / "records.jsonl"
    given = dict(models=tmp_path / "small.json", prompts=20, batches=2, samples=4, sequences=2, results=path)

    def run(**options):
        status = prefill.main([f"--{name}={value}" for name, value in (given | options).items()])
        return status, log.read(path)

    return run


@pytest.fixture
def given(monkeypatch):
    """Gives the calls of `LLM.generate` the (tokens, seconds) of a function of their number; the models called."""

    def patch(outcome):
        calls = []

        def timed(llm, prompts):
            calls.append(llm)
            return outcome(len(calls) - 1, prompts)

        monkeypatch.setattr(first_token, "timed", timed)
        return calls

    return patch


def steady(number, prompts):
    """Two milliseconds; the last token of each prompt again."""
    return [prompt[-1] for prompt in prompts], 0.002


# --- records


@pytest.mark.slow
def test_records_of_prompts_and_of_a_chunk(run, capsys):
    status, (prompts, part) = run(starts=100, chunks=30)
    assert status == 0
    for one in (prompts, part):
        assert (one["kind"], one["model"], one["dtype"], one["batch"]) == ("prefill", "small", "f32", 2)
        assert (one["implementation"], one["prefill_backend"], one["samples"]) == ("xla", "xla", 4)
        assert one["status"] == "ok" and 0 < one["ms_p5"] <= one["ms"] <= one["ms_p95"]
        case = Case(batch=2, tokens=one["tokens"], start=one["start"])
        assert (one["flop"], one["bytes"]) == (cost.flop(CONFIG, case), cost.moved_bytes(CONFIG, "f32", case))
        assert one["floor_ms"] == pytest.approx(one["bytes"] / 10e6, abs=1e-6)  # as rounded
        assert one["tflops"] == pytest.approx(one["flop"] / one["ms"] / 1e9, abs=1e-4)  # as rounded
        assert one["device"].startswith("cpu") and one["sources"] and one["date"]
        assert one["command"].startswith("python -m experiments.prefill --models=small.json")
    assert (prompts["tokens"], prompts["start"]) == (20, 0) and (part["tokens"], part["start"]) == (30, 100)
    assert prompts["tokens_checked"] == 4 and prompts["tokens_agree_with_xla"] is None, "it is XLA's attention already"
    assert prompts["products_ms"] is prompts["attention_ms"] is None
    assert part["products_ms"] > 0 and part["attention_ms"] > 0 and part["gather_ms"] is None
    out = capsys.readouterr().out
    assert out.count("; ok") == 2 and "10.0 GB/s" in out and "ms (p5 to p95)" in out
    assert "batch 2, 30 tokens behind 100, xla: " in out and "4 first tokens checked; ok" in out


@pytest.mark.slow
def test_different_prompts_take_turns(run, given):
    seen = []

    def outcome(number, prompts):
        seen.append(prompts)
        assert len(prompts) == 2 and {len(prompt) for prompt in prompts} == {20}
        assert all(type(token) is int and 0 <= token < CONFIG.vocab_size for prompt in prompts for token in prompt)
        return [prompt[-1] for prompt in prompts], 0.001 * (number + 1)

    given(outcome)
    _, (one,) = run()
    compiling, timed = seen[:2], seen[2:]
    assert compiling == [timed[0]] * 2 and timed[:2] == timed[2:] and timed[0] != timed[1] and len(timed) == 4
    assert one["ms"] == pytest.approx(4.5) and one["status"] == "ok", "the first two calls are not counted"


@pytest.mark.slow
def test_a_first_token_that_is_not_the_same_again_is_void(run, given, capsys):
    given(lambda number, prompts: ([number % 4 for _ in prompts], 0.002))
    _, (one,) = run()
    assert one["status"] == "void: the first tokens of two runs of a prompt differ" and one["ms"] == 2.0
    assert re.search(r"small +f32 +2 +0 +20 +\S+ +- +- +- +- +- +xla +xla +void", capsys.readouterr().out)


@pytest.mark.slow
def test_what_is_compiled_during_timing_is_void(run, given):
    def outcome(number, prompts):
        if number == 3:
            jax.jit(lambda x: x * 3.5)(np.float32(1))
        return steady(number, prompts)

    given(outcome)
    assert run()[1][0]["status"] == "void: something was compiled during timing"


@pytest.mark.parametrize("check_up_to, agree", [(20, 3), (19, None)])
def test_first_tokens_are_compared_with_those_by_xla_s_attention(given, check_up_to, agree):
    llm = LLM(decoder_of(CONFIG, "float32", 0).weights.model, implementation="xla")
    llm.prefill_backend = "cudnn"

    def outcome(number, prompts):
        tokens, seconds = steady(number, prompts)
        return [tokens[0] + (number == 6), *tokens[1:]], seconds  # one of XLA's four is another

    calls = given(outcome)
    case = Case(batch=2, tokens=20)
    result = first_token.measure(llm, case, samples=4, sequences=2, seed=0, check_up_to=check_up_to)
    assert result.status == "ok" and (result.tokens_checked, result.tokens_agree) == (4, agree)
    others = calls[6:]
    assert len(others) == (0 if agree is None else 2)
    assert all(other.prefill_backend == "xla" and other.model is llm.model for other in others)


# --- a chunk


def test_times_of_a_chunk_are_means_of_calls(monkeypatch):
    clock = itertools.count(step=8.0)
    monkeypatch.setattr(found.time, "perf_counter", lambda: next(clock))
    carry, ms = found.back_to_back(lambda x: x + 1, 5)
    assert carry == 5 + found.CALLS and ms == 1e3 * 8.0 / found.CALLS


@pytest.mark.slow
def test_a_chunk_whose_residual_stream_is_not_finite_is_void(monkeypatch):
    real = chunk.Workload

    class Poisoned(real):
        def fresh(self, sequence):
            state = super().fresh(sequence)
            return jax.tree.map(lambda x: x * np.nan if x.ndim == 4 else x, state)

    monkeypatch.setattr(chunk, "Workload", Poisoned)
    decoder = decoder_of(CONFIG, "float32", 0)
    result = chunk.measure(
        decoder, Case(batch=1, tokens=8, start=30), implementation="xla", prefill_backend="xla", samples=2
    )
    assert result.status == "void: a residual stream that is not finite"


@pytest.mark.slow
def test_the_parts_of_a_chunk_by_flash_attention(monkeypatch):
    """With cuDNN's place taken by XLA: there are gathers too."""
    by_xla = chunk.attend_behind
    monkeypatch.setattr(chunk, "attend_behind", lambda *a, **k: by_xla(*a, **k, implementation="xla"))
    decoder, case = decoder_of(CONFIG, "float32", 0), Case(batch=2, tokens=8, start=30)
    workload = chunk.Workload(decoder, batch=2, context=30, steps=8)
    caches = workload.fresh(0).caches
    programs = chunk.parts(decoder, case, caches, prefill_backend="cudnn", capacity=workload.capacity)
    assert list(programs) == ["products_ms", "attention_ms", "gather_ms"]
    results = {name: np.asarray(program(caches)) for name, program in programs.items()}
    assert results["attention_ms"].shape == (2, 8, CONFIG.num_heads, CONFIG.head_dim)
    assert all(np.isfinite(result).all() for result in results.values()), "the cache behind the start is NaN"
    firsts = [x[0, 0, 0, 0] for cache in caches for x in (cache.k, cache.v)]
    assert results["gather_ms"] == pytest.approx(float(sum(firsts)), rel=1e-6)  # of float32


# --- what fails


def test_what_fails_is_a_record_and_the_run_goes_on(run, given):
    def outcome(number, prompts):
        if len(prompts[0]) == 30:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore lines")
        return steady(number, prompts)

    given(outcome)
    status, (failed, ok) = run(prompts="30,20")
    assert status == 0 and failed["status"] == "running failed: RuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert failed["ms"] is failed["tokens_agree_with_xla"] is None and failed["samples"] == 0
    assert ok["status"] == "ok" and ok["ms"] == 2.0


@pytest.mark.slow
def test_a_model_that_cannot_be_made(run, given, tmp_path, monkeypatch):
    (tmp_path / "large.json").write_text(json.dumps(SMALL | dict(hidden_size=64)))
    given(steady)

    def make(config, dtype, seed):
        if config.d_model == 64:
            raise MemoryError("too large")
        return decoder_of(config, dtype, seed)

    monkeypatch.setattr(prefill, "Decoder", make)
    _, records = run(models=f"{tmp_path / 'large.json'},{tmp_path / 'small.json'}")
    assert [one["status"] for one in records] == ["making the model failed: MemoryError: too large", "ok"]


@pytest.mark.slow
def test_an_interruption_loses_nothing(run, given, capsys):
    def outcome(number, prompts):
        if len(prompts[0]) == 30:
            raise KeyboardInterrupt
        return steady(number, prompts)

    given(outcome)
    status, records = run(prompts="20,30")
    assert status == 130 and [one["tokens"] for one in records] == [20]
    assert "Interrupted" in capsys.readouterr().out


@pytest.mark.slow
def test_a_gpu_that_stops_answering_ends_the_run(run, given, monkeypatch, capsys):
    def fails(number, prompts):
        raise RuntimeError("no")

    def lost():
        raise DeviceLost("RuntimeError: an illegal address")

    given(fails)
    monkeypatch.setattr(prefill, "probe_device", lost)
    status, records = run(prompts="20,30")
    assert status == 1 and [one["tokens"] for one in records] == [20], "what failed is there"
    assert "stopped answering (RuntimeError: an illegal address)" in capsys.readouterr().out


# --- the command line


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(prompt=3), "config: unknown 'prompt'; did you mean prompts"),
        (dict(models="llama-3.2-1B"), "models: unknown 'llama-3.2-1B'; did you mean llama-3.2-1b"),
        (dict(dtypes="int3"), "dtypes: unknown 'int3'; expected one of bf16, f16, f32"),
        (dict(prefill_backend="flash"), "prefill_backend: unknown 'flash'; "),
        (dict(prefill_backend="cudnn"), "prefill_backend: 'cudnn' needs an NVIDIA GPU"),
        (dict(prompts=0), "prompts: expected 1 or more, got 0"),
        (dict(prompts=512), "prompts: 513 positions are not in the 512 of small"),
        (dict(starts=500, chunks=13), "starts: 514 positions are not in the 512 of small"),
        (dict(starts=0), "starts: expected 1 or more, got 0"),
        (dict(starts=5, chunks=""), "chunks: expected at least one"),
        (dict(batches=""), "batches: expected at least one"),
        (dict(batches=17), "batches: expected at most 16, got 17"),
        (dict(samples=3), "samples: expected 4 or more, got 3"),
        (dict(seed=2**32), "seed: expected at most 4294967295, got 4294967296"),
    ],
)
@pytest.mark.skipif(jax.default_backend() == "gpu", reason="what is refused without a GPU")
def test_mistakes_are_one_line_and_write_nothing(run, options, message, capsys):
    assert run(**options) == (2, [])
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.search(f"error: {message}", err), err


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="what is chosen without a GPU")
def test_what_suits_a_machine_without_a_gpu():
    options = prefill.command_line.parse([], prefill_options.Options, "prefill.py")
    assert list(prefill_options.configs(options)) == ["qwen2.5-0.5b"] and prefill_options.dtypes(options) == ("f32",)
    assert prefill_options.cases(options) == [Case(batch=1, tokens=128)]
    alone = prefill.command_line.parse(["--starts=100,200", "--batches=1,2"], prefill_options.Options, "prefill.py")
    assert prefill_options.cases(alone) == [
        Case(batch=batch, tokens=512, start=start) for batch in (1, 2) for start in (100, 200)
    ]
