"""The figures of the command line, from the command line."""

import json
import sys

import numpy as np
import pytest

from experiments import generate
from experiments.bench import log
from experiments.bench.models import FOLDER, PUBLISHED, config_of
from tokenspeed import cli
from tokenspeed.models import hf_config

NAME = "llama-3.2-1b"
"""What the small model is called here: only the published ones have names."""
SMALL = dict(
    model_type="llama", vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
    num_attention_heads=4, max_position_embeddings=512, rms_norm_eps=1e-6, torch_dtype="float32",
)  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on the small model; (exit status, records in the file)."""
    (tmp_path / f"{NAME}.json").write_text(json.dumps(SMALL))
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    monkeypatch.setattr(generate, "needed_gpu", lambda who: None)
    monkeypatch.setattr(generate, "config_of", lambda model: hf_config.from_dict(SMALL))
    monkeypatch.setattr("tokenspeed.measure.read_ceiling.read_ceiling_gbps", lambda: 10.0)
    path = tmp_path / "records.jsonl"
    given = dict(models=NAME, prompts="17,20", max_tokens=4, results=path)

    def run(**flags):
        status = generate.main([f"--{name}={value}" for name, value in (given | flags).items()])
        return status, log.read(path)

    return run


@pytest.mark.slow
def test_records_are_what_the_command_says(run, capsys):
    status, records = run()
    assert status == 0 and [one["context"] for one in records] == [17, 20]
    for one in records:
        assert (one["kind"], one["model"], one["dtype"], one["batch"]) == ("generate", NAME, "f32", 1)
        assert one["status"] == "ok" and one["tokens_checked"] == one["output_tokens"] == 4
        assert one["ceiling_gbps"] == 10.0 and one["implementation"] == "xla"
        assert one["ttft_ms"] > 0 and one["tokens_per_s"] > 0
        assert one["percent_of_ceiling"] == pytest.approx(10 * one["achieved_gbps"], abs=0.02)  # both are rounded
        assert one["achieved_gbps"] == pytest.approx(one["bytes"] * one["tokens_per_s"] / 1e9, abs=1e-3)  # so are these
        assert one["generate_command"].startswith(f"python -m tokenspeed generate --random-weights {NAME}.json")
        assert one["device"] and one["date"] and one["command"].startswith("python -m experiments.generate --models=")
    out = capsys.readouterr().out
    assert out.count("TTFT") == 2 and f"{NAME}, 20: TTFT" in out


def test_a_run_whose_repeat_differs_is_void(run, monkeypatch):
    """The figures are those of the second of two runs."""
    calls = []

    def output_of(*case):
        calls.append(case)
        figures = dict.fromkeys(("output_tokens", "bytes_per_step"), 4) | dict(
            ttft_ms=1.0 * len(calls), decode_tokens_per_s=100.0, achieved_gbps=1.0, read_ceiling_gbps=10.0,
            percent_of_ceiling=10.0, implementation="xla", dtype="float32",
        )  # fmt: skip
        return dict(samples=[dict(token_ids=[1, 2, 3, len(calls)])], figures=figures)

    monkeypatch.setattr(generate, "output_of", output_of)
    status, (one,) = run(prompts="3")
    assert one["status"] == "void: the tokens of two runs differ" and status == 0
    assert calls == [(NAME, 3, 4)] * 2 and one["ttft_ms"] == 2.0


def test_the_command_gets_as_many_ids_as_asked_for(run, monkeypatch):
    """By standard input; greedily, and not ended by the model."""
    seen = []

    def main(arguments):
        seen.append((arguments, sys.stdin.read()))
        return 3

    monkeypatch.setattr(cli, "main", main)
    with pytest.raises(RuntimeError, match="status 3"):
        generate.output_of(NAME, 7, 5)
    ((arguments, typed),) = seen
    ids = np.array(typed.split(","), int)
    assert len(ids) == 7 and ids.min() >= 0 and ids.max() < SMALL["vocab_size"]
    text = " ".join(arguments)
    for option in ("--temperature 0", "--ignore-eos", "--max-tokens 5", "--prompt-ids -", "--json"):
        assert option in text


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(models="nothing"), "models: unknown 'nothing'"),
        (dict(models=""), "models: expected at least one"),
        (dict(prompts="x"), "prompts: expected a tuple of int"),
        (dict(prompts=0), "prompts: expected 1 or more, got 0"),
        (dict(prompts="3,999999"), f"prompts: expected at most 508 tokens for {NAME}, got 999999"),
        (dict(max_tokens=1), "max_tokens: expected 2 or more, got 1"),
    ],
)
def test_bad_options(run, capsys, flags, message):
    assert run(**flags) == (2, [])
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_without_a_gpu_it_says_so_and_makes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    monkeypatch.setattr(generate, "output_of", lambda *_: pytest.fail("a model is made"))
    assert generate.main([]) == 2
    err = "error: the benchmark of the command line needs an NVIDIA GPU, and there is none here\n"
    assert capsys.readouterr() == ("", err) and list(tmp_path.iterdir()) == []


def test_the_shipped_configs_are_the_published_sizes():
    parameters = {"llama-3.1-70b": 70553706496, "llama-3.1-8b": 8030261248, "llama-3.2-1b": 1235814400,
                  "llama-3.2-3b": 3212749824, "qwen2.5-0.5b": 494032768}  # fmt: skip
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(PUBLISHED) == sorted(parameters)
    for model, count in parameters.items():
        assert config_of(model).num_parameters == count and config_of(model).max_positions >= 32768
