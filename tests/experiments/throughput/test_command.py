"""The throughput benchmark from its command line: records, what fails, what is refused."""

import dataclasses
import json
import re

import jax
import pytest

from experiments.bench import log
from experiments.bench.device import DeviceLost
from experiments.throughput import __main__ as throughput
from experiments.throughput import options as throughput_options
from experiments.throughput.load import Load
from experiments.throughput.options import Options
from tests.experiments.decode.small import SMALL
from tests.experiments.throughput.served import Served
from tokenspeed.engine import build
from tokenspeed.engine.kinds import GREEDY
from tokenspeed.engine.shapes import served as served_shapes

pytestmark = pytest.mark.usefixtures("programs_run_often")


@pytest.fixture
def run(tmp_path):
    """Runs the command on a small model; (exit status, records in the file)."""
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    path = tmp_path / "records.jsonl"
    given = dict(
        models=tmp_path / "small.json", concurrency=2, input_tokens=20, output_tokens=6, least_requests=5, repeats=2,
        background=1, short_tokens=10, results=path,
    )  # fmt: skip

    def run(**options):
        status = throughput.main([f"--{name}={value}" for name, value in (given | options).items()])
        return status, log.read(path)

    return run


@pytest.fixture
def served(monkeypatch):
    """Puts an engine without a model in place of AsyncEngine; what models and engines were made."""
    made = []

    class LLM:
        @staticmethod
        def random(config, **options):
            made.append(options)
            return config

    def engine(llm):
        made.append(Served())
        return made[-1]

    monkeypatch.setattr(throughput, "LLM", LLM)
    monkeypatch.setattr(throughput, "AsyncEngine", engine)
    return made


def test_records_of_one_engine(run, served, capsys):
    status, records = run(concurrency="1,2", long_prompts=300, shared_prefixes=64)
    assert status == 0 and [one["kind"] for one in records] == ["throughput"] * 2 + ["long_prompt", "shared_prefix"]
    options, engine = served
    assert engine.closed and options["max_batch"] == 3 and options["max_context"] == 301 and options["kv_bytes"] is None
    for one in records:
        assert one["status"] == "ok" and (one["model"], one["dtype"], one["implementation"]) == ("small", "f32", "xla")
        assert (one["max_batch"], one["max_context"], one["kv_pages"], one["programs"]) == (3, 301, 8, 7)
        assert one["device"].startswith("cpu") and one["sources"] and one["date"]
        assert one["command"].startswith("python -m experiments.throughput --models=small.json")
    assert [(one["concurrency"], one["requests"]) for one in records[:2]] == [(1, 5), (2, 5)]
    out = capsys.readouterr().out
    assert out.count("; ok") == 4 and "7 programs" in out and "30 tokens counted, 6 of 6 as alone" in out
    assert "output tokens/s" in out and "long prompt" in out and "TTFT ms of the first" in out


@pytest.fixture
def few_programs(monkeypatch):
    """Of a served engine those that the cases run, which are greedy: compiling is most of the time here."""

    def few(**how):
        whole = served_shapes(**how)
        return dataclasses.replace(
            whole,
            decode=tuple(one for one in whole.decode if one[0] == GREEDY),
            first=tuple(one for one in whole.first if one[0] == GREEDY),
            chunks=tuple(one for one in whole.chunks if one in ((1, 16), (1, 128), (1, 512))),
        )

    monkeypatch.setattr(build, "served", few)


@pytest.mark.slow
def test_records_of_the_engine_itself(run, few_programs, tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(SMALL | dict(max_position_embeddings=8192)))
    status, records = run(concurrency=3, long_prompts=4500, shared_prefixes=130, repeats=1)
    assert status == 0 and [one["status"] for one in records] == ["ok"] * 3
    assert all(one["compiled_after_ready"] == one["preemptions"] == 0 for one in records)
    load, long, shared = records
    assert load["tokens_checked"] == 6 * 6 and load["tokens_alike"] == 6, "of float32"
    assert 0 < load["programs"] <= 40 and 3 / load["kv_pages"] == pytest.approx(load["pool_occupancy"], abs=1e-4)
    assert load["steps"] >= 12 and load["host_ms_per_step"] > 0 and load["prefix_hit_tokens"] == 0
    assert load["ttft_ms_p50"] <= load["ttft_ms_p99"] and load["ttft_ms_p50"] < load["whole_ms_p50"]
    assert long["itl_before_ms_p50"] < long["itl_during_ms_p99"] < long["long_ttft_ms"], "a chunk is between them"
    assert shared["prefix_hit_tokens"] == 128


def test_an_engine_that_cannot_be_made(run, served, monkeypatch, tmp_path):
    (tmp_path / "large.json").write_text(json.dumps(SMALL | dict(hidden_size=64)))

    def make(config):
        if config.d_model == 64:
            raise MemoryError("too large")
        return Served()

    monkeypatch.setattr(throughput, "AsyncEngine", make)
    status, records = run(models=f"{tmp_path / 'large.json'},{tmp_path / 'small.json'}")
    assert status == 0
    assert [one["status"] for one in records] == ["making the engine failed: MemoryError: too large", "ok"]
    assert records[0]["seconds"] is None and records[0]["max_batch"] == 2


def test_an_interruption_loses_nothing_and_closes_the_engine(run, served, monkeypatch, capsys):
    real = throughput.measure

    def measure(engine, vocabulary, case):
        if case.concurrency == 2:
            raise KeyboardInterrupt
        return real(engine, vocabulary, case)

    monkeypatch.setattr(throughput, "measure", measure)
    status, records = run(concurrency="1,2")
    assert status == 130 and [one["concurrency"] for one in records] == [1] and served[-1].closed
    assert "Interrupted" in capsys.readouterr().out


def test_a_gpu_that_stops_answering_ends_the_run(run, served, monkeypatch, capsys):
    def lost():
        raise DeviceLost("RuntimeError: an illegal address")

    monkeypatch.setattr(throughput, "probe_device", lost)
    monkeypatch.setattr(Served, "drawn", lambda *_: 1 / 0)
    status, records = run()
    assert status == 1 and not records and served[-1].closed
    assert "stopped answering (RuntimeError: an illegal address)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(concurency=3), "config: unknown 'concurency'; did you mean concurrency"),
        (dict(models="llama-3.2-1B"), "models: unknown 'llama-3.2-1B'; did you mean llama-3.2-1b"),
        (dict(dtypes="int3"), "dtypes: unknown 'int3'; expected one of bf16, f16, f32"),
        (dict(concurrency=0), "concurrency: expected 1 or more, got 0"),
        (dict(concurrency=257), "concurrency: expected at most 256, got 257"),
        (dict(background=255), "background: expected at most 254, got 255"),
        (dict(output_tokens=1), "output_tokens: expected 2 or more, or there is no time between tokens, got 1"),
        (dict(long_prompts=0), "long_prompts: expected 1 or more, got 0"),
        (dict(input_tokens=507), "max_context: 513 positions are not in the 512 of small"),
        (dict(long_prompts=512), "max_context: 513 positions are not in the 512 of small"),
        (dict(max_context=25), "max_context: expected 26 or more, which the cases need, got 25"),
        (dict(seed=2**32), "seed: expected at most 4294967295, got 4294967296"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run, served, options, message, capsys):
    assert run(**options) == (2, []) and not served
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.search(f"error: {message}", err), err


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="what is chosen without a GPU")
def test_what_suits_a_machine_without_a_gpu():
    options = throughput.command_line.parse([], Options, "throughput.py")
    assert list(throughput_options.configs(options)) == ["tiny"] and throughput_options.dtypes(options) == ("f32",)
    assert throughput_options.cases(options) == [
        Load(concurrency=most, requests=8, input_tokens=32, output_tokens=16, seed=0) for most in (1, 4)
    ]
    alone = throughput.command_line.parse(["--long_prompts=100,200", "--shared_prefixes=64"], Options, "throughput.py")
    kinds = [case.kind for case in throughput_options.cases(alone)]
    assert kinds == ["long_prompt", "long_prompt", "shared_prefix"] and throughput_options.max_batch(alone) == 10
