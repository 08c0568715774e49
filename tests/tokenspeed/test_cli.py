"""The command line, in this process."""

import io
import json

import jax
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
        (["inspect", "--random-weights", "CONFIG", "--max-context", "0"], "context: expected 1 to 512, got 0"),
        (["inspect", "--random-weights", "CONFIG", "--batch", "0"], "batch: expected 1 to"),
        (["inspect", "--random-weights", "CONFIG", "--batch", "x"], "--batch: invalid int value: 'x'"),
        ([], "required: COMMAND"),
        (["generate", "--model", "tiny", "--prompt", "x", "--top-p", "y"], "--top-p: invalid float value: 'y'"),
        (["generate", "--model", "tiny", "--prompt", "x", "--nothing"], "unrecognized arguments: --nothing"),
        (["generate", "--model", "", "--prompt", "x"], "--model: expected a folder, got ''"),
        (["generate", "--model", "tiny", "--prompt", "x", "--system", "y"], "--system: expected --chat with it"),
        (["generate", "--model", "tiny", "--prompt", "x", "--system", ""], "--system: expected --chat with it"),
        (["generate", "--model", "tiny", "--prompt-ids", "1", "--chat"], "--chat: expected a text by --prompt"),
        (["generate", "--random-weights", "CONFIG", "--prompt", "x", "--chat"], "random weights have no tokenizer"),
        (["generate", "--model", "tiny", "--prompt", "x", "--logprobs", "1"], "--logprobs: expected --json with it"),
        (["generate", "--model", "tiny", "--prompt", "x", "--logit-bias", ""], "--logit-bias: expected ID:BIAS,..."),
        (["generate", "--model", "tiny", "--prompt", "x", "--logit-bias", "1:2,1:3"], "expected every id once"),
        (["generate", "--model", "tiny", "--prompt", "x", "--max-context", "0"], "max_context: expected an integer"),
        (["generate", "--model", "tiny", "--prompt", "x", "--stop", ""], "stop: expected strings that are not empty"),
        (
            ["generate", "--model", "tiny", "--prompt", "x", "--kv-cache-dtype", "int4"],
            "--kv-cache-dtype: expected auto",
        ),
        (["inspect", "--random-weights", "nowhere.json"], "nowhere.json: No such file"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, config):
    assert main([config if a == "CONFIG" else a for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") == 1 and not out


@pytest.mark.parametrize("flag", ["--prompt", "--prompt-ids"])
@pytest.mark.parametrize("read", [None, b"\xff"], ids=["closed", "bytes"])
def test_standard_input_that_is_no_text(flag, read, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None if read is None else io.TextIOWrapper(io.BytesIO(read), encoding="utf-8"))
    assert main(["generate", "--model", "tiny", flag, "-"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {flag}: expected text on standard input") and err.count("\n") == 1


@pytest.mark.parametrize(
    "typed, prompt", [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a ", "a "), ("\na", "\na")]
)
def test_the_last_newline_of_standard_input_is_not_part_of_the_prompt(typed, prompt, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    seen = []

    def encode(llm, given):
        seen.append(given)
        raise ValueError("enough")

    monkeypatch.setattr("tokenspeed.llm.LLM.encode", encode)
    assert main(["generate", "--model", "tiny", "--prompt", "-"]) == 2
    assert seen == [prompt]


def test_memory_that_runs_out_is_one_line(capsys, monkeypatch):
    def full(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\nmore")

    monkeypatch.setattr("tokenspeed.llm.LLM.stream", full)
    assert main(["generate", "--model", "tiny", "--prompt", "a"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: memory ran out; a smaller --max-context") and err.count("\n") == 1


def test_help_says_the_defaults_and_version_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    for default in (
        "draw (default: 1)",
        "most likely token (default: 1.0)",
        "at most (default: 256)",
        "(default: none)",
    ):
        assert default in text
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and "tokenspeed-jax" in capsys.readouterr().out


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
    more = ["--random-weights", str(path), "--max-context", "8192", "--json"]
    assert main(["inspect", *more, "--kv-cache-dtype", "auto/fp8"]) == 0
    halved = json.loads(capsys.readouterr().out)
    assert halved["memory"]["kv_bytes"] == 8192 * 131072 * 3 // 4
    assert found["decode_bytes_per_token"] - halved["decode_bytes_per_token"] == 8192 * 131072 // 4
    assert main(["inspect", *more, "--kv-cache-dtype", "fp16"]) == 2
    assert "--kv-cache-dtype: expected auto, fp8 or int8, or two of them for keys/values" in capsys.readouterr().err


def test_the_bytes_of_a_step():
    llama, window = (
        hf_config.from_dict(LLAMA),
        hf_config.from_dict(dict(QWEN, model_type="mistral", sliding_window=16)),
    )
    weights = 2 * (llama.num_parameters - (128256 - 1) * 4096)
    assert memory.decode_bytes(llama, dtype="bfloat16", context=1024) == weights + 1024 * 131072
    near, far = (memory.decode_bytes(window, dtype="bfloat16", context=n) for n in (16, 500))
    assert near == far
