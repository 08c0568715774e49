"""The figures of the command line, from the command line."""

import json

import pytest

from experiments import generate
from tests.tokenspeed.test_config import QWEN
from tokenspeed import measure
from tokenspeed.config import ModelConfig


@pytest.fixture
def small(tmp_path, monkeypatch):
    (tmp_path / "small.json").write_text(json.dumps(QWEN | dict(torch_dtype="float32")))
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    monkeypatch.setattr(generate, "config_of", lambda model: ModelConfig.from_dict(QWEN))
    monkeypatch.setattr(measure, "read_ceiling_gbps", lambda: 10.0)


def run(tmp_path, **flags):
    path = tmp_path / "rows.jsonl"
    given = dict(models="small", prompts="3,20", max_tokens=4, results=str(path)) | flags
    assert generate.main([f"--{name}={value}" for name, value in given.items()]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_what_the_command_says(small, tmp_path, capsys):
    rows = run(tmp_path)
    assert [row["context"] for row in rows] == [3, 20] and len(run(tmp_path)) == 4
    for row in rows:
        assert row["status"] == "ok" and row["tokens_checked"] == row["output_tokens"] == 4
        assert row["prompt_tokens"] == row["context"] and row["read_ceiling_gbps"] == 10.0
        assert row["ttft_ms"] > 0 and row["decode_tokens_per_s"] > 0 and row["implementation"] == "xla"
        assert row["percent_of_ceiling"] == pytest.approx(10 * row["achieved_gbps"], abs=0.02)
        assert row["generate_command"].startswith("python -m tokenspeed generate --random-weights small.json")
        assert row["device"] and row["date"] and row["command"]
    assert "TTFT" in capsys.readouterr().out


def test_a_run_whose_repeat_differs_is_void(small, tmp_path, monkeypatch):
    real, calls = generate.run, []

    def changing(*case):
        found = real(*case)
        calls.append(case)
        found["samples"][0]["token_ids"][-1] += len(calls)
        return found

    monkeypatch.setattr(generate, "run", changing)
    (row,) = run(tmp_path, prompts="3")
    assert row["status"].startswith("void") and len(calls) == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(models="nothing"), "models: unknown 'nothing'"),
        (dict(prompts="x"), "prompts: expected lengths, got 'x'"),
        (dict(prompts="999999"), "prompts: 999999 and 4 more are not in the positions of small"),
        (dict(max_tokens=1), "max_tokens: expected 2 or more, got 1"),
    ],
)
def test_bad_flags(small, tmp_path, capsys, flags, message):
    with pytest.raises(AssertionError):
        run(tmp_path, **flags)
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "rows.jsonl").exists()


def test_the_shipped_configs_are_the_published_sizes():
    parameters = {"llama-3.1-8b": 8030261248, "llama-3.2-1b": 1235814400, "llama-3.2-3b": 3212749824,
                  "qwen2.5-0.5b": 494032768}  # fmt: skip
    for path in sorted(generate.FOLDER.glob("*.json")):
        config = ModelConfig.from_dict(json.loads(path.read_text()))
        assert config.num_parameters == parameters[path.stem]
        assert config.max_positions >= 32768
