"""The prefill benchmark from its command line: records, what is void, what fails, what is refused."""

import dataclasses
import functools
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import log
from experiments.bench.device import DeviceLost
from experiments.bench.models import config_of
from experiments.prefill import __main__ as prefill
from experiments.prefill import chunk, cost, first_token, found
from experiments.prefill import options as prefill_options
from experiments.prefill.options import Case
from pallas_kernels import KVCache
from tests.experiments.decode.small import CONFIG, SMALL, decoder_of
from tokenspeed import LLM
from tokenspeed.engine.generation import Weights
from tokenspeed.models import decoder as decoders


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
    assert part["products_ms"] > 0 and part["attention_ms"] > 0 and part["gather_ms"] > 0
    out = capsys.readouterr().out
    assert out.count("; ok") == 2 and "10.0 GB/s" in out and "ms (p5 to p95)" in out
    assert "batch 2, 30 tokens behind 100, xla: " in out and "4 first tokens checked; ok" in out


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ragged-int8", "ragged-fp8", "ragged-int4-g32"])
def test_records_of_a_quantised_model(model, run):
    status, records = run(models=model, starts=40, chunks=10)
    assert status == 0 and [(one["start"], one["status"]) for one in records] == [(0, "ok"), (40, "ok")]
    plain = config_of("ragged")
    for one in records:
        case = Case(batch=2, tokens=one["tokens"], start=one["start"])
        assert one["model"] == model and one["flop"] == cost.flop(plain, case)
        assert one["bytes"] < cost.moved_bytes(plain, "f32", case)


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
    llm = LLM(decoder_of(CONFIG, "float32", 0).weights.model, implementation="xla", max_batch=2)
    llm.options = dataclasses.replace(llm.options, prefill_backend="cudnn")

    def outcome(number, prompts):
        tokens, seconds = steady(number, prompts)
        return [tokens[0] + (number == 6), *tokens[1:]], seconds  # one of XLA's four is another

    calls = given(outcome)
    case = Case(batch=2, tokens=20)
    result = first_token.measure(llm, case, samples=4, sequences=2, seed=0, check_up_to=check_up_to)
    assert result.status == "ok" and (result.tokens_checked, result.tokens_agree) == (4, agree)
    others = calls[6:]
    assert len(others) == (0 if agree is None else 2)
    for other in others:
        assert other.model is llm.model
        assert other.options == dataclasses.replace(llm.options, prefill_backend="xla", prefix_caching=False)


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
@pytest.mark.parametrize("backend", ["xla", "cudnn"])
def test_a_chunk_over_pages_is_what_the_model_computes(backend, monkeypatch):
    """With cuDNN's place taken by XLA: the residual stream, behind tokens that are in the cache."""
    monkeypatch.setattr(decoders, "attend_chunk", functools.partial(decoders.attend_chunk, implementation="xla"))
    model = decoder_of(CONFIG, "float32", 0).weights.model
    table, rope = jnp.array([[3, 0], [2, 1]], jnp.int32), model.rope_tables(32)
    empty = functools.partial(jnp.full, (4, CONFIG.num_kv_heads, 16, CONFIG.head_dim), jnp.nan)
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 28)).astype(np.int32)

    def last(cuts, backend):
        caches = [KVCache(k=empty(), v=empty()) for _ in CONFIG.layers]
        for begin, end in itertools.pairwise(cuts):
            caches, x = chunk.layers(
                Weights.of(model), caches, tokens[:, begin:end], np.full((2,), begin, np.int32), rope, table,
                capacity=32, prefill_backend=backend, implementation="xla",
            )  # fmt: skip
        return x

    with jax.default_matmul_precision("highest"):
        found = last((0, 20, 28), backend)
    # Two layers of float32 roundings.
    np.testing.assert_allclose(found, last((0, 28), "xla"), rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["xla", "cudnn"])
def test_the_parts_of_a_chunk(backend, monkeypatch):
    """With cuDNN's place taken by XLA. What XLA's attention gathers has the chunk's own slots, which are NaN here."""
    by_xla = chunk.attend_behind
    monkeypatch.setattr(chunk, "attend_behind", lambda *a, **k: by_xla(*a, **k, implementation="xla"))
    decoder, case = decoder_of(CONFIG, "float32", 0), Case(batch=2, tokens=8, start=30)
    workload = chunk.Workload(decoder, batch=2, context=30, steps=8, page_size=16)
    caches, table = workload.fresh(0).caches, workload.page_table
    if backend == "xla":
        caches = jax.tree.map(jnp.nan_to_num, caches)
    programs = chunk.parts(decoder, case, caches, table, prefill_backend=backend, capacity=workload.capacity)
    assert list(programs) == ["products_ms", "attention_ms", "gather_ms"]
    results = {name: np.asarray(program(caches)) for name, program in programs.items()}
    assert results["attention_ms"].shape == (2, 8, CONFIG.num_heads, CONFIG.head_dim)
    assert all(np.isfinite(result).all() for result in results.values()), "the cache behind the start is NaN"
    firsts = [x[table[0, 0], 0, 0, 0] for cache in caches for x in (cache.k, cache.v)]
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
        (dict(batches=65), "batches: expected at most 64, got 65"),
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


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(prompts=20), dict(max_context=512, max_batch=2)),  # of the model
        (dict(prompts="128,9000"), dict(max_context=9001, max_batch=2)),
        (dict(prompts="", starts=9000), dict(max_context=8192, max_batch=2)),
    ],
)
def test_the_pool_is_as_large_as_the_prompts_need(options, expected):
    arguments = [f"--{name}={value}" for name, value in (dict(batches="1,2") | options).items()]
    parsed = prefill.command_line.parse(arguments, prefill_options.Options, "prefill.py")
    config = CONFIG if expected["max_context"] == 512 else dataclasses.replace(CONFIG, max_positions=1 << 17)
    assert prefill_options.limits(parsed, config) == expected
