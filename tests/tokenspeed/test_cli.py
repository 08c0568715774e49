"""The command line, in this process."""

import io
import json

import pytest

from tests.tokenspeed.models.test_hf_config import LLAMA, QWEN
from tests.tokenspeed.shared import folder
from tokenspeed.cli import main
from tokenspeed.models import hf_config, memory


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN | dict(num_hidden_layers=1, torch_dtype="float32", eos_token_id=2)))
    return str(path)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("tokenspeed.measure.read_ceiling.read_ceiling_gbps", lambda: 10.0)


def test_generate_streams_text_and_says_how_fast(capsys, quick):
    model = str(folder("checkpoints", "stories260K"))
    assert main(["generate", "--model", model, "--prompt", "Once upon a time", "--temperature", "0",
                 "--max-tokens", "12"]) == 0  # fmt: skip
    out, err = capsys.readouterr()
    text = (folder("checkpoints", "stories260K") / "greedy.txt").read_text()
    assert ("Once upon a time" + out.rstrip("\n")) in text and len(out) > 20
    assert "TTFT" in err and "tokens/s" in err and "of this machine's measured 10 GB/s" in err and "xla" in err


@pytest.mark.slow
def test_generate_json_with_random_weights_and_standard_input(capsys, quick, config, monkeypatch):
    arguments = ["generate", "--random-weights", config, "--prompt-ids", "5,6,7", "--max-tokens", "4", "--n", "2",
                 "--json", "--seed", "1", "--ignore-eos", "--logprobs", "1", "--logit-bias", "9:50"]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt_token_ids"] == [5, 6, 7] and len(found["samples"]) == 2
    assert all(s["token_ids"] == [9] * 4 and len(s["logprobs"]) == 4 for s in found["samples"])
    figures = found["figures"]
    assert figures["output_tokens"] == 4 and figures["read_ceiling_gbps"] == 10.0 and figures["implementation"] == "xla"
    monkeypatch.setattr("sys.stdin", io.StringIO("Lily"))
    assert main(["generate", "--model", str(folder("checkpoints", "stories260K")), "--prompt", "-", "--max-tokens", "2",
                 "--json"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["samples"][0]["text"] is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "--prompt", "x"], "--model, --random-weights: expected one of them"),
        (["generate", "--model", "nowhere", "--prompt", "x"], "--model: no folder nowhere"),
        (["generate", "--random-weights", "CONFIG"], "--prompt, --prompt-ids: expected one of them"),
        (["generate", "--random-weights", "CONFIG", "--prompt", "x"], "no tokenizer"),
        (["generate", "--random-weights", "CONFIG", "--prompt-ids", "1,x"], "--prompt-ids: expected token ids"),
        (["generate", "--random-weights", "CONFIG", "--prompt-ids", "1", "--top-p", "2"], "top_p: "),
        (
            ["generate", "--random-weights", "CONFIG", "--prompt-ids", "1", "--logit-bias", "1"],
            "--logit-bias: expected",
        ),
        (["inspect", "--random-weights", "CONFIG", "--max-context", "513"], "context: expected 1 to 512, got 513"),
        (["inspect", "--random-weights", "nowhere.json"], "nowhere.json: No such file"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, config):
    assert main([config if a == "CONFIG" else a for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") == 1 and not out


def test_inspect(capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    assert main(["inspect", "--model", str(tmp_path), "--device", "h200", "--batch", "64"]) == 0
    text = capsys.readouterr().out
    assert "8.030 B parameters" in text and "KV 131.1 kB a token" in text and "does NOT fit h200" in text
    assert main(["inspect", "--random-weights", str(path), "--device", "h200", "--max-context", "8192", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["fits"] and found["memory"]["weights_bytes"] == 16_060_522_496
    assert found["memory"]["kv_bytes"] == 8192 * 131072


def test_the_bytes_of_a_step():
    llama, window = (
        hf_config.from_dict(LLAMA),
        hf_config.from_dict(dict(QWEN, model_type="mistral", sliding_window=16)),
    )
    weights = 2 * (llama.num_parameters - (128256 - 1) * 4096)
    assert memory.decode_bytes(llama, dtype="bfloat16", context=1024) == weights + 1024 * 131072
    near, far = (memory.decode_bytes(window, dtype="bfloat16", context=n) for n in (16, 500))
    assert near == far
