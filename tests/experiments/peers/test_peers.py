"""Other engines, by a driver that stands in for theirs."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.bench import log as logs
from experiments.bench import record
from experiments.bench.errors import UsageError
from experiments.bench.models import FOLDER
from experiments.peers import __main__ as peers

MODELS = ("llama-3.1-8b", "llama-3.2-1b")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """`main` changes it."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "")


@pytest.fixture
def driven(tmp_path, monkeypatch):
    """Puts a program in place of the drivers and a GPU in place of none; returns a function that runs the command.

    The program has `request`, and notes it and the driver that it stands in for in the file 'asked'.
    """
    (tmp_path / "engines").mkdir()
    for engine in peers.ENGINES:
        (tmp_path / "engines" / f"{engine}.py").write_text("raise ImportError('only the driver imports it')\n")
    monkeypatch.syspath_prepend(tmp_path / "engines")
    monkeypatch.setattr(peers, "needed_gpu", lambda who: None)
    python, asked, results = tmp_path / "python", tmp_path / "asked", tmp_path / "peers.jsonl"

    def run(body, *arguments):
        python.write_text(
            f"#!{sys.executable}\nimport json, sys\nrequest = json.loads(sys.argv[2])\n"
            f"print(json.dumps([sys.argv[1], request]), file=open({str(asked)!r}, 'a'))\n{body}\n"
        )
        python.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(python))
            status = peers.main([f"--results={results}", *arguments])
        requests = [json.loads(line) for line in asked.read_text().splitlines()]
        return status, logs.read(results), requests

    return run


PRINTING = """
print("a line of the engine's own")
print("{a line that looks like ours")
print('{"level": "info"}')
for batch in request["batches"]:
    print(json.dumps(dict(batch=batch, ms=[4.0, 1.0, 2.0, 3.5], version="1.2, torch 3.4", how="compiled")), flush=True)
"""


@pytest.mark.parametrize("engine", peers.ENGINES)
def test_what_a_driver_prints_is_recorded(engine, driven, capsys):
    status, records, requests = driven(PRINTING, f"--engine={engine}", "--batches=1,8", "--context=128", "--steps=31")
    assert status == 0
    assert [(found["model"], found["batch"]) for found in records] == [(m, b) for m in MODELS for b in (1, 8)]
    for found in records:
        assert found["kind"] == "peer" and found["status"] == "ok" and found["dtype"] == "bf16"
        assert (found["engine"], found["implementation"], found["context"]) == (engine, engine, 128)
        assert (found["engine_version"], found["how"]) == ("1.2, torch 3.4", "compiled")
        # The median of four is between the second and the third.
        assert (found["ms_per_token"], found["ms_min"], found["ms_max"]) == (2.75, 1.0, 4.0)
        assert (found["samples"], found["steps"]) == (4, 31)
        assert found["tokens_per_s"] == round(1e3 * found["batch"] / 2.75, 2)
        assert found["sources"] and found["device"] and found["command"].startswith("python -m experiments.peers ")
    assert [Path(driver).name for driver, _ in requests] == [f"{engine}_driver.py"] * 2
    assert all(Path(driver).is_file() for driver, _ in requests)
    for model, (_, request) in zip(MODELS, requests, strict=True):
        assert request == dict(
            config=str(FOLDER / f"{model}.json"), quantization=None, batches=[1, 8], context=128, steps=31, repeats=5,
            in_process=False,
        )  # fmt: skip
    out = capsys.readouterr().out
    assert f"{engine} 1.2, torch 3.4, llama-3.2-1b, batch 8: 2.750 ms a token (1.000 to 4.000)" in out
    assert "a line of the engine's own" not in out


@pytest.mark.parametrize("load", [(), ("--concurrency=2", "--output_tokens=3")])
def test_a_model_in_fp8_has_the_name_that_ours_has(load, driven):
    """Its config is the published one: the engine quantises it."""
    body = LOAD if load else PRINTING
    status, (one,), ((_, request),) = driven(body, "--engine=vllm", "--models=llama-3.1-8b-fp8", *load)
    assert status == 0 and one["model"] == "llama-3.1-8b-fp8" and one["dtype"] == "bf16"
    assert request["config"] == str(FOLDER / "llama-3.1-8b.json") and request["quantization"] == "fp8"


FAKES = dict(
    torch="__version__ = '3.4'",
    vllm="""
import json, time, types
__version__ = "1.2"
SamplingParams = lambda **options: types.SimpleNamespace(**options)


class LLM:
    def __init__(self, **options):
        print(json.dumps(dict(asked=options)), flush=True)

    def generate(self, prompts, params, use_tqdm):
        drawn = types.SimpleNamespace(token_ids=[0] * params.max_tokens)
        return [types.SimpleNamespace(outputs=[drawn]) for _ in prompts]
""",
)


@pytest.mark.parametrize("quantization", [None, "fp8"])
def test_vllm_is_told_how_to_quantise_and_the_record_says_so(quantization, tmp_path):
    for name, source in FAKES.items():
        (tmp_path / f"{name}.py").write_text(source)
    request = dict(
        config=str(FOLDER / "llama-3.2-1b.json"), quantization=quantization, batches=[1, 2], context=8, steps=3,
        repeats=2, in_process=True,
    )  # fmt: skip
    driver = Path(peers.__file__).with_name("vllm_driver.py")
    environment = os.environ | dict(PYTHONPATH=str(tmp_path))
    command = [sys.executable, str(driver), json.dumps(request)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    first, *printed = map(json.loads, run.stdout.splitlines())
    assert first["asked"]["quantization"] == quantization and first["asked"]["load_format"] == "dummy"
    assert [(one["batch"], len(one["ms"]), one["version"]) for one in printed] == [
        (1, 2, "1.2, torch 3.4"), (2, 2, "1.2, torch 3.4")
    ]  # fmt: skip
    assert all(peers.found_in(line) for line in run.stdout.splitlines()[1:])
    assert all(("fp8 of weights and activations" in one["how"]) == bool(quantization) for one in printed)


def test_every_run_is_kept(driven):
    for i in (1, 2):
        _, records, requests = driven(PRINTING, "--engine=torch", "--models=llama-3.2-1b", "--in_process")
        assert len(records) == i and requests[-1][1]["in_process"] is True
    assert all(record.check(found, "here") for found in records)


LOAD = """
for load in request["loads"]:
    n = load["requests"]
    arrivals = [[[i + 1.5, 1], [i + 1.75, 2]] for i in range(n)]
    found = dict(load=load, called=list(range(n)), arrivals=arrivals, version="1.2, torch 3.4", how="compiled")
    print(json.dumps(found), flush=True)
"""


def test_requests_under_way_at_a_time_are_recorded(driven, capsys):
    sizes = ["--input_tokens=9", "--output_tokens=3", "--rounds=3", "--least_requests=4"]
    arguments = ["--engine=vllm", "--models=llama-3.2-1b", "--concurrency=1,2", *sizes]
    status, records, requests = driven(LOAD, *arguments)
    assert status == 0 and Path(requests[0][0]).name == "vllm_load_driver.py" and Path(requests[0][0]).is_file()
    assert [(found["concurrency"], found["requests"]) for found in records] == [(1, 4), (2, 6)]
    for found in records:
        assert found["kind"] == "peer_load" and record.check(found, "here")
        n = found["requests"]  # one a second, of 3 tokens each
        assert found["seconds"] == n + 0.75 and found["output_tokens_per_s"] == round(3 * n / (n + 0.75), 2)
        assert (found["ttft_ms_p50"], found["itl_ms_p50"], found["whole_ms_p50"]) == (1500, 125, 1750)
    assert "llama-3.2-1b, 2 at a time of 9 + 3: 2.7 tokens/s; TTFT 1500.0 ms" in capsys.readouterr().out


def test_a_load_of_other_tokens_than_were_asked_for(driven, capsys):
    assert driven(LOAD, "--engine=vllm", "--concurrency=1", "--output_tokens=4")[:2] == (2, [])
    assert "drew another number of tokens" in capsys.readouterr().err


@pytest.mark.parametrize("ms, middle", [([3.0, 1.0, 2.0], 2.0), ([2.0, 1.0], 1.5)])
def test_the_median_of_the_repeats(ms, middle):
    options = peers.Options(engine="torch", repeats=len(ms))
    found = peers.fields_of(options, MODELS[0], dict(batch=2, ms=ms, version="1", how=""))
    assert (found["ms_per_token"], found["samples"]) == (middle, len(ms))
    assert found["tokens_per_s"] == round(2e3 / middle, 2)


def test_a_driver_that_fails_is_one_line_and_what_it_printed_before_is_kept(driven, capsys):
    body = PRINTING + "print('out of memory\\n')\nsys.exit(3 if '8b' not in request['config'] else 0)"
    status, records, requests = driven(body, "--engine=torch")
    assert status == 2 and [found["model"] for found in records] == list(MODELS) and len(requests) == 2
    assert capsys.readouterr().err == "error: torch: llama-3.2-1b: its driver ended with 3: out of memory\n"


@pytest.mark.parametrize("engine", peers.ENGINES)
def test_an_engine_that_is_not_installed(engine, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, engine, None)
    assert importlib.util.find_spec(engine) is None
    monkeypatch.chdir(tmp_path)
    assert peers.main([f"--engine={engine}"]) == 2
    expected = f"error: engine: {engine} is not installed here (pip install {engine})\n"
    assert capsys.readouterr() == ("", expected) and list(tmp_path.iterdir()) == []


def test_without_a_gpu(driven, tmp_path, monkeypatch, capsys):
    def needed(who):
        raise UsageError(f"{who} needs an NVIDIA GPU, and there is none here")

    monkeypatch.setattr(peers, "needed_gpu", needed)
    assert peers.main(["--engine=torch", f"--results={tmp_path / 'peers.jsonl'}"]) == 2
    assert capsys.readouterr().err == "error: a peer needs an NVIDIA GPU, and there is none here\n"
    assert not (tmp_path / "peers.jsonl").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "engine: unknown ''; expected one of vllm, torch"),
        (("--engine=vlm",), "engine: unknown 'vlm'; did you mean vllm?"),
        (("--engine=torch", "--models=ragged"), "models: unknown 'ragged'"),
        (
            ("--engine=torch", "--models=llama-3.1-8b-fp8"),
            "models: llama-3.1-8b-fp8: expected weights as published, since torch makes no fp8",
        ),
        (
            ("--engine=vllm", "--models=llama-3.2-1b,llama-3.1-8b-int8"),
            "models: llama-3.1-8b-int8: expected weights as published or fp8, since vllm makes no int8",
        ),
        (("--engine=torch", "--models="), "models: expected at least one"),
        (("--engine=torch", "--batches=0"), "batches: expected 1 or more, got 0"),
        (("--engine=torch", "--repeats=1"), "repeats: expected 2 or more, got 1"),
        (("--engine=torch", "--context=10000000"), "context"),
        (("--engine=torch", "--concurrency=8"), "concurrency: expected none, since torch takes no requests"),
        (("--engine=vllm", "--concurrency=0"), "concurrency: expected 1 or more, got 0"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert peers.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {message}") and err.count("\n") == 1


def test_what_a_driver_prints_comes_while_it_runs(tmp_path, monkeypatch):
    """A record is on the disk before the next batch is measured."""
    python, go = tmp_path / "python", tmp_path / "go"
    said = dict(batch=1, ms=[1.0], version="1", how="compiled")
    python.write_text(
        f"#!{sys.executable}\nimport pathlib, sys, time\nprint({json.dumps(said)!r}, flush=True)\n"
        f"end = time.monotonic() + 60\nwhile not pathlib.Path({str(go)!r}).exists() and time.monotonic() < end:\n"
        "    time.sleep(0.01)\nsys.exit(0 if time.monotonic() < end else 'nothing came')\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    lines = peers.drive(peers.Options(engine="torch"), MODELS[0])
    assert next(lines) == said
    go.touch()
    assert list(lines) == []


def test_a_driver_ends_with_an_interruption(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport json, os, time\n"
        "print(json.dumps(dict(batch=1, ms=[1.0], version=os.getpid(), how='')), flush=True)\ntime.sleep(60)\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    lines = peers.drive(peers.Options(engine="torch"), MODELS[0])
    pid = next(lines)["version"]
    with pytest.raises(KeyboardInterrupt):
        lines.throw(KeyboardInterrupt)
    lines.close()
    end = time.monotonic() + 30
    while _runs(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _runs(pid)


def _runs(pid):
    """Whether it does, and is not only waited for."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False
