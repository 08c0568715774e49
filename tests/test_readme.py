"""What the README shows runs as it stands, where it takes no GPU: DIR is the model that ships, NEW a folder of a test,
and commands are called."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tokenspeed import TINY, cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture(scope="module", autouse=True)
def programs_are_kept(compiled_once):
    """The commands, and the lines of Python, generate with the same ones."""
    with compiled_once():
        yield


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """The words of each command that begins with `program`, in blocks and in text."""
    lines = [line for block in blocks("") for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", README)
    found = [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]
    assert found, program
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pallas_kernels. no NVIDIA GPU here")
@pytest.mark.parametrize("source", blocks("python"), ids=lambda source: source.splitlines()[-1])
def test_the_python_runs(source, capsys):
    exec(compile(source.replace('"DIR"', repr(str(TINY))), "README.md", "exec"), {})
    if "print(" in source:
        assert len(capsys.readouterr().out) > 20


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("python -m tokenspeed"), ids=" ".join)
def test_the_commands_run(command, capsys, tmp_path):
    folders = dict(DIR=str(TINY), NEW=str(tmp_path / "new"))
    words = [folders.get(word, word) for word in command[3:]]
    if words[0] == "serve":  # until it is told to end; tests/tokenspeed/server runs it
        cli.parser().parse_args(words)
        return
    assert cli.main(words) == 0
    assert len(capsys.readouterr().out) > 10


@pytest.mark.slow
def test_the_answer_shown_is_the_answer(capsys):
    (line,) = re.findall(r"^python -m tokenspeed (.*--chat --temperature 0)  # (An owl .*)$", README, re.MULTILINE)
    assert cli.main(shlex.split(line[0])) == 0
    assert capsys.readouterr().out.strip() == line[1]


def test_the_experiments_and_their_configs_are_there():
    for _, _, module, *options in commands("python -m"):
        assert importlib.util.find_spec(module), module
        for option in options:
            name, _, value = option.partition("=")
            if name == "--config":
                assert (ROOT / "configs" / value).is_file(), value


def test_the_targets_and_extras_are_there():
    for _, *targets in commands("make"):
        assert set(targets) <= TARGETS
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for command in commands("pip"):
        extras = re.findall(r"\.\[(.*)\]", command[-1])
        assert extras and set(extras[0].split(",")) <= set(project["optional-dependencies"])


def test_a_shell_has_the_environment_before_any_command_that_needs_it():
    lines = [line for block in blocks("") for line in block.splitlines()]
    activated = next(i for i, line in enumerate(lines) if line.startswith("source .venv/bin/activate"))
    assert any(line.startswith("make venv") for line in lines[:activated])
    assert not any(line.startswith(("python", "pip")) for line in lines[:activated])


def test_it_is_short():
    assert len(README.splitlines()) <= 130
