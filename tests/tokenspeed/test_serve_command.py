"""`serve`: what it starts, by its options and by a file of them."""

from pathlib import Path

import pytest

from tokenspeed.cli import main
from tokenspeed.server import serve
from tokenspeed.server.options import OPTIONS
from tokenspeed.weights.revision import revision_of
from tokenspeed.weights.tiny import TINY

EXAMPLE = Path(__file__).parents[2] / "configs/serve.yaml"


@pytest.fixture
def started(monkeypatch):
    """What the server would be started with."""
    found = {}
    monkeypatch.setattr(serve, "serve", lambda load, **options: found.update(options, load=load))
    return found


@pytest.fixture
def file(tmp_path):
    """Writes a file of options."""

    def write(text, encoding="utf-8"):
        path = tmp_path / "serve.yaml"
        path.write_text(text, encoding)
        return str(path)

    return write


def test_the_example_starts_the_small_model(started):
    assert main(["serve", "--config", str(EXAMPLE)]) == 0
    assert (started["host"], started["port"], started["name"]) == ("127.0.0.1", 8000, "tiny")
    assert started["revision"] == revision_of(TINY)
    assert started["bounds"].queue == 64 and started["bounds"].max_tokens == 256


def test_the_command_line_overrides_the_file(started, file):
    config = file("port: 1\nmax_queue: 2\nmax-concurrent: 3\nrefuse-above-cap: true\nmetrics-key: true\n")
    assert main(["serve", "--config", config, "--port", "0", "--max-queue", "5", "--no-metrics-key"]) == 0
    assert started["port"] == 0 and not started["metrics_key"]
    bounds = started["bounds"]
    assert (bounds.queue, bounds.concurrent, bounds.refuse) == (5, 3, True)


def test_a_file_may_have_every_option(started, file, tmp_path):
    """But for how to round the activations of a model that is quantised."""
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    values = dict(model="tiny", revision=revision_of(TINY), dtype="float32", implementation="xla")
    values |= {
        "kv-cache-dtype": "auto/fp8",
        "api-key-file": keys,
        "cors-origin": "['*', 'http://a:1']",
        "kv-bytes": 1 << 40,
        "max-num-batched-tokens": 8192,
    }
    kinds = {bool: "true", int: "7", float: "7", str: "some"}
    options = [option for option in OPTIONS if option.name != "activations"]
    lines = [f"{option.name}: {values.get(option.name, kinds.get(option.kind))}" for option in options]
    assert main(["serve", "--config", file("\n".join(lines))]) == 0
    assert started["keys"] == ["one"] and started["port"] == 7 and started["metrics_key"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("prot: 1", "prot: is not known; expected one of model, revision, "),
        ("3: 1", "3: is not known"),
        ("config: other.yaml", "config: is not known"),
        ("api-key: secret", "api-key: is not known"),
        ("port: '1'", "port: expected an integer from 0 to 65535, got '1'"),
        ("port: [1, 2]", "port: expected an integer from 0 to 65535, got [1, 2]"),
        ("port: 70000", "port: expected an integer from 0 to 65535, got 70000"),
        ("port: true", "port: expected an integer from 0 to 65535, got True"),
        ("port:", "port: expected an integer from 0 to 65535, got None"),
        ("max-queue: 0", "max-queue: expected an integer from 1 to"),
        ("metrics-key: 1", "metrics-key: expected True or False, got 1"),
        ("served_model_name: 3", "served-model-name: expected a string, got 3"),
        ("dtype: int8", "dtype: expected one of bfloat16, float16, float32, got 'int8'"),
        ("kv-cache-dtype: fp16", "kv-cache-dtype: expected auto, fp8 or int8, or two of them for keys/values, got"),
        ("cors-origin: one", "cors-origin: expected a list of strings, got 'one'"),
        ("cors-origin: [https://a/]", "cors-origin: expected '*' or http(s)://HOST[:PORT], got 'https://a/'"),
        ("revision: abc", "revision: expected 64 hex digits, got 'abc'"),
        ("metrics-prefix: a-b", "metrics-prefix: expected letters, digits and underscores, got 'a-b'"),
        ("read-ceiling: .nan", "read-ceiling: expected a number from 0 to"),
        ("port: 1\nport: 2", "port: expected once, got it twice"),
        ("max-queue: 1\nmax_queue: 1", "max-queue: expected once, got it twice"),
        ("- port", "expected a YAML mapping of options, got seq"),
        ("", "expected a YAML mapping of options, got nothing"),
        ("port: {", "expected YAML: "),
        ("port: !!python/object:os.system 1", "expected YAML: "),
        ("port: 2024-99-99", "expected YAML: "),
        ("a: 1\n---\nb: 1", "expected YAML: "),
        ("[" * 500, "expected YAML: "),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(text, message, file, started, capsys):
    assert main(["serve", "--config", (path := file(text))]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}: {message}") and err.count("\n") == 1 and not started


def test_a_file_that_cannot_be_read(file, started, tmp_path, capsys):
    for path in (str(tmp_path / "none.yaml"), str(tmp_path), file("host: ü", "latin-1")):
        assert main(["serve", "--config", path]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: --config: {path}: ") and err.count("\n") == 1
    assert not started


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--max-queue", "0"], "--max-queue: expected an integer from 1 to"),
        (["--port", "70000"], "--port: expected an integer from 0 to 65535, got 70000"),
        (["--port", "x"], "argument --port: invalid int value: 'x'"),
        (["--model", "nowhere"], "--model: no folder nowhere"),
        (["--api-key-file", "nowhere"], "--api-key-file: "),
        (
            ["--kv-cache-dtype", "fp8,int8"],
            "--kv-cache-dtype: expected auto, fp8 or int8, or two of them for keys/values",
        ),
        (["--read-ceiling", "-1"], "--read-ceiling: expected a number from 0 to"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_one_line(arguments, message, started, capsys):
    assert main(["serve", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") and err.count("\n") == 1 and not started


def test_another_revision_is_refused_before_anything_is_loaded(started, capsys):
    assert main(["inspect", "--model", "tiny", "--revision"]) == 0
    revision = capsys.readouterr().out.strip()
    assert main(["serve", "--revision", revision]) == 0 and started["revision"] == revision
    started.clear()
    assert main(["serve", "--revision", "0" * 64]) == 2
    assert capsys.readouterr().err == f"error: revision: expected {'0' * 64}, got {revision} of {TINY}\n"
    assert not started
    assert main(["inspect", "--random-weights", str(TINY / "config.json"), "--revision"]) == 2
    assert "--revision: expected --model" in capsys.readouterr().err
