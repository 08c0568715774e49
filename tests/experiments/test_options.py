"""The command line: config names, overrides, and mistakes in them."""

import dataclasses
import subprocess
import sys
import types
from pathlib import Path

import pytest
from absl import flags

from experiments import options, sweep
from experiments.options import UsageError

ROOT = Path(__file__).resolve().parents[2]


def parsed(*arguments):
    return options.parse(["sweep", *arguments], flags.FlagValues())[0]


def test_config_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = parsed()
    assert default == parsed("--config=tiles.py") == parsed("--config", "tiles.py") == parsed("--config=tiles")
    assert default == parsed(f"--config={ROOT / 'configs' / 'tiles.py'}")


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    text = (ROOT / "configs" / "tiles.py").read_text().replace("config.seed = 0", "config.seed = 7")
    (tmp_path / "tiles.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert parsed("--config=tiles.py").seed == 7


def test_overrides():
    found = parsed(
        "--config=tiles.py",
        "--config.ops=qkv,out",
        "--config.models=llama-3.1-8b,llama-3.2-1b",
        "--config.rows=(1, 8)",
        "--config.contexts=1024",
        "--config.block_n",
        "2,4",
        "--config.mma=True",
        "--config.time_limit_s=30",
        "--config.plots=",
    )
    assert found.ops == ("qkv", "out")
    assert found.models == ("llama-3.1-8b", "llama-3.2-1b")
    assert found.rows == (1, 8) and found.contexts == (1024,)
    assert found.restrictions == dict(block_n=(2, 4), mma=(True,), programs=(0,))
    assert found.time_limit_s == 30 and found.plots == ""


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parsed().seed = 1


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config=tile.py", "no file 'tile.py'.*did you mean tiles.py"),
        ("--config.row=1", "config: unknown 'row'; did you mean rows"),
        ("--config.ops=qkw", "ops: unknown 'qkw'; did you mean qkv"),
        ("--config.models=llama-3.1-8B", "did you mean llama-3.1-8b"),
        ("--config.dtypes=int3", "dtypes: unknown 'int3'; expected one of bf16, f16, f32"),
        ("--config.devices=h20", "devices: unknown 'h20'; did you mean h200"),
        ("--config.ops=", "ops: expected at least one"),
        ("--config.rows=17", "rows: expected 1 to 16, got 17"),
        ("--config.rows=a", "rows: expected a tuple of int, got 'a'"),
        ("--config.samples=few", "samples"),
        ("--config.samples=0", "samples: expected 1 or more, got 0"),
        ("--config.max_tiles=-1", "max_tiles: expected 0 or more, got -1"),
        ("--promot", "Unknown command line flag 'promot'"),
        ("extra", "unexpected argument 'extra'"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(argument, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        parsed("--config=tiles.py", argument)
    assert sweep.main(["sweep", "--config=tiles.py", argument]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_config_file_with_an_unknown_field(tmp_path):
    text = (ROOT / "configs" / "tiles.py").read_text().replace("config.seed = 0", "config.seeds = 0")
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UsageError, match="unknown 'seeds'; did you mean seed"):
        parsed(f"--config={tmp_path / 'mine.py'}")


def test_tiles_that_no_search_space_has(make_options, tmp_path):
    with pytest.raises(UsageError, match=r"block_n=\(3,\), programs=\(0,\): no tile of out's search space"):
        sweep.run(make_options(block_n=(3,)), ["sweep"], False)
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_known(monkeypatch):
    monkeypatch.setattr(sweep.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(sweep.jax, "devices", lambda: [types.SimpleNamespace(device_kind="NVIDIA T4")])
    with pytest.raises(UsageError, match="device: unknown GPU 'NVIDIA T4'; expected one of a100, h100"):
        sweep.gpu_here()


def test_promoting_needs_a_gpu(make_options, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "gpu_here", lambda: None)
    with pytest.raises(UsageError, match="promote: needs times of a GPU"):
        sweep.run(make_options(), ["sweep"], True)
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_flags_and_a_clean_exit(capsys):
    assert sweep.main(["sweep", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--config=tiles.py" in out and "promote" in out


@pytest.mark.slow
def test_as_a_module_with_an_unknown_field():
    command = [sys.executable, "-m", "experiments.sweep", "--config=tiles.py", "--config.modles=tiny"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and "did you mean models" in run.stderr
