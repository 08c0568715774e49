"""The command line: values of every kind, configs and where they are found, and mistakes, each of one line."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench import options
from experiments.bench.errors import ResultsError, UsageError
from experiments.sweep import __main__ as sweep
from experiments.sweep.options import Options

ROOT = Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
    """A field of each kind."""

    number: int = 1
    ratio: float = 0.5
    name: str = "a"
    flag: bool = False
    on: bool = True
    names: tuple[str, ...] = ("a",)
    numbers: tuple[int, ...] = (1,)
    ratios: tuple[float, ...] = (0.5,)
    flags: tuple[bool, ...] = ()
    files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbered:
    """No files."""

    number: int = 1


def tiles(*arguments):
    return options.parse(arguments, Options, "tiles.py")


@pytest.mark.parametrize(
    "arguments, field, value",
    [
        ("--number=3", "number", 3),
        ("--number=-3", "number", -3),
        ("-number=3", "number", 3),
        ("--number=3 --number=4", "number", 4),
        ("--numbers=3 --numbers=4,5", "numbers", (4, 5)),
        ("--names=x --names=", "names", ()),
        ("--ratio=2.5", "ratio", 2.5),
        ("--ratio=1e-3", "ratio", 1e-3),
        ("--ratio=3", "ratio", 3.0),
        ("--name=word", "name", "word"),
        ("--name=5", "name", "5"),
        ("--name=a=b", "name", "a=b"),
        ("--name=", "name", ""),
        ("--flag", "flag", True),
        ("--flag=true", "flag", True),
        ("--on=False", "on", False),
        ("--names=x,y", "names", ("x", "y")),
        ("--names=x", "names", ("x",)),
        ("--names=('x','y')", "names", ("x", "y")),
        ("--names=1,it's", "names", ("1", "it's")),
        ("--names=", "names", ()),
        ("--numbers=1,8", "numbers", (1, 8)),
        ("--numbers=7", "numbers", (7,)),
        ("--numbers=7,", "numbers", (7,)),
        ("--numbers=(1,8)", "numbers", (1, 8)),
        ("--numbers=", "numbers", ()),
        ("--ratios=1.5,2", "ratios", (1.5, 2)),
        ("--flags=True,False", "flags", (True, False)),
        ("--config.number=3", "number", 3),
        ("--config.number 3", "number", 3),
        ("--config.number -3", "number", -3),
        ("--config.numbers 1,8", "numbers", (1, 8)),
        ("--config.flag=True", "flag", True),
        ("--config.flag", "flag", True),
        ("--config.flag --config.on true", "flag", True),
        ("--config.on false", "on", False),
        ("here.jsonl out/there.jsonl", "files", ("here.jsonl", "out/there.jsonl")),
    ],
)
def test_a_value(arguments, field, value):
    found = options.parse(arguments.split(), Every)
    assert found == dataclasses.replace(Every(), **{field: value})
    assert type(getattr(found, field)) is type(value)


def test_values_and_files_in_any_order():
    found = options.parse(["here", "--number=2", "--flag", "there", "--config.names", "x,y"], Every)
    assert found == Every(number=2, flag=True, names=("x", "y"), files=("here", "there"))


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--number=2.5", "number: expected int, got '2.5'"),
        ("--number=few", "number: expected int, got 'few'"),
        ("--number=", "number: expected int, got ''"),
        ("--number", "number: expected a value: --number=..."),
        ("--ratio=nan", "ratio: expected finite float, got 'nan'"),
        ("--ratio=-inf", "ratio: expected finite float, got '-inf'"),
        ("--ratio=1e999", "ratio: expected finite float, got '1e999'"),
        ("--ratios=1,nan", "ratios: expected a tuple of finite float, got '1,nan'"),
        ("--number=nan", "number: expected int, got 'nan'"),
        (f"--number={2**63}", f"number: expected int, got '{2**63}'"),
        (f"--number={'9' * 5000}", "number: expected int, got '999"),
        (f"--numbers={'(' * 10_000}", "numbers: expected a tuple of int, got '((("),
        ("--ratio=half", "ratio: expected finite float, got 'half'"),
        ("--name", "name: expected a value: --name=..."),
        ("--flag=maybe", "flag: expected bool, got 'maybe'"),
        ("--numbers=1.5", "numbers: expected a tuple of int, got '1.5'"),
        ("--numbers=True", "numbers: expected a tuple of int, got 'True'"),
        ("--numbers=few", "numbers: expected a tuple of int, got 'few'"),
        ("--numbers=1,few", "numbers: expected a tuple of int, got '1,few'"),
        ("--numbers=1;2", "numbers: expected a tuple of int, got '1;2'"),
        ("--ratios=half", "ratios: expected a tuple of finite float, got 'half'"),
        ("--flags=1", "flags: expected a tuple of bool, got '1'"),
        ("--config.number", "--config.number: expected a value"),
        ("--config", "--config: expected a value"),
        ("--numbr=1", "config: unknown 'numbr'; did you mean number?"),
        ("--config.numbr=1", "config: unknown 'numbr'; did you mean number?"),
        ("--number.x=1", "config: unknown 'number.x'; did you mean number?"),
        ("--nothing-like-it=1", "unexpected argument '--nothing-like-it=1'"),
        ("-", "unexpected argument '-'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(argument, message, capsys):
    ran = []
    status = options.main(lambda *given: ran.append(given), Every, "experiments.every", "Every.", argv=[argument])
    out, err = capsys.readouterr()
    assert status == 2 and not ran and out == ""
    assert err.startswith(f"error: {message}") and err.endswith("\n") and err.count("\n") == 1


def test_a_file_where_none_is_taken():
    with pytest.raises(UsageError, match=r"unexpected argument 'here\.jsonl'"):
        options.parse(["here.jsonl"], Numbered)


@pytest.mark.parametrize("returned, status", [(None, 0), (0, 0), (1, 1), (130, 130)])
def test_the_exit_status_is_what_the_command_returns(returned, status):
    assert options.main(lambda *_: returned, Numbered, "experiments.numbered", "", argv=[]) == status


@pytest.mark.parametrize("error", [UsageError, ResultsError])
def test_an_error_of_the_command_is_one_line(error, capsys):
    def run(*_):
        raise error("results: no such thing")

    assert options.main(run, Numbered, "experiments.numbered", "", argv=[]) == 2
    assert capsys.readouterr() == ("", "error: results: no such thing\n")


def test_the_command_is_as_a_shell_takes_it_but_for_absolute_paths():
    typed = ["--number=2", "--name=/a/b/records.jsonl", "--names=out/x,y=A=/a/b /c/d --at http://here/v1", "/c/d"]
    seen = []
    options.main(lambda _, command: seen.append(command), Every, "experiments.every", "", argv=typed)
    assert seen == [
        "python -m experiments.every --number=2 --name=records.jsonl '--names=out/x,y=A=b d --at http://here/v1' d"
    ]


@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help_is_the_doc_and_the_fields_and_runs_nothing(argument, capsys):
    doc = "\nWhat it does.\n\n    python -m experiments.every\n"
    ran = []
    assert options.main(lambda *_: ran.append(0), Every, "experiments.every", doc, argv=["--wrong", argument]) == 0
    out, err = capsys.readouterr()
    assert not ran and err == "" and out.startswith("What it does.\n\n    python -m experiments.every\n")
    for name, kind in dict(number="int", name="str", flag="bool", numbers="tuple[int, ...]").items():
        assert f"  --{name}: {kind}\n" in out


def test_config_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = tiles()
    assert default == tiles("--config=tiles.py") == tiles("--config", "tiles.py") == tiles("--config=tiles")
    assert default == tiles(f"--config={ROOT / 'configs' / 'tiles.py'}")
    assert default.models == ("llama-3.1-8b", "llama-3.2-1b")


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    text = (ROOT / "configs" / "tiles.py").read_text().replace("config.seed = 0", "config.seed = 7")
    (tmp_path / "tiles.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert tiles("--config=tiles.py").seed == 7
    assert tiles("--seed=8", "--config", "tiles.py", "--ops=out").seed == 8, "what is typed comes before the file"


def test_overrides_of_a_sweep():
    found = tiles(
        "--config=tiles.py", "--ops=qkv,out", "--config.models=llama-3.1-8b,llama-3.2-1b", "--rows=(1, 8)",
        "--contexts=1024", "--config.block_n", "2,4", "--mma=True", "--time_limit_s=30", "--plots=", "--promote",
    )  # fmt: skip
    assert found.ops == ("qkv", "out")
    assert found.models == ("llama-3.1-8b", "llama-3.2-1b")
    assert found.rows == (1, 8) and found.contexts == (1024,)
    assert found.restrictions == dict(block_n=(2, 4), mma=(True,))
    assert found.time_limit_s == 30 and found.plots == "" and found.promote is True


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config=tile.py", "config: no file 'tile.py'.*did you mean tiles.py"),
        ("--row=1", "config: unknown 'row'; did you mean rows"),
        ("--ops=qkw", "ops: unknown 'qkw'; did you mean qkv"),
        ("--models=llama-3.1-8B", "models: unknown 'llama-3.1-8B'; did you mean llama-3.1-8b"),
        ("--interpret_model=big", "interpret_model: unknown 'big'"),
        ("--dtypes=int3", "dtypes: unknown 'int3'; expected one of bf16, f16, f32"),
        ("--devices=h20", "devices: unknown 'h20'; did you mean h200"),
        ("--ops=", "ops: expected at least one"),
        ("--rows=0", "rows: expected 1 or more, got 0"),
        ("--rows=a", "rows: expected a tuple of int"),
        ("--samples=few", "samples: expected int, got 'few'"),
        ("--time_limit_s=nan", "time_limit_s: expected finite float, got 'nan'"),
        ("--time_limit_s=inf", "time_limit_s: expected finite float, got 'inf'"),
        ("--time_limit_s=-1", "time_limit_s: expected 0 or more, got -1"),
        ("--samples=0", "samples: expected 1 or more, got 0"),
        ("--max_tiles=-1", "max_tiles: expected 0 or more, got -1"),
        ("--seed=4294967296", "seed: expected at most 4294967295, got 4294967296"),
        ("--block_n=3", r"block_n=\(3,\): no tile of out's search space for ragged"),
        ("extra", "unexpected argument 'extra'"),
    ],
)
def test_mistakes_write_nothing(argument, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["--config=tiles.py", "--models=ragged", "--ops=out", argument]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.match(f"error: {message}", err), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("config.seed = 0", "config.seeds = 0", "config: unknown 'seeds'; did you mean seed"),
        ("config.seed = 0", "pass", "config: lacks seed"),
        ("config.seed = 0", "config.seed = 'x'", "seed: expected int, got 'x'"),
        ("config.seed = 0", "config.seed = True", "seed: expected int, got True"),
        ("config.rows = (1,)", "config.rows = (1, 'x')", r"rows: expected a tuple of int, got \(1, 'x'\)"),
        ("config.seed = 0", "config.seed = nothing", "config: mine.py: NameError: name 'nothing' is not defined"),
        ("return config", "return dict(config)", "config: mine.py: TypeError: expected get_config.. to return a Conf"),
        ("def get_config", "def get", "config: mine.py: AttributeError"),
        ("def get_config()", "def get_config(", "config: mine.py: SyntaxError"),
    ],
)
def test_a_config_file_with_a_mistake(old, new, message, tmp_path):
    text = (ROOT / "configs" / "tiles.py").read_text()
    assert old in text
    (tmp_path / "mine.py").write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=f"^{message}"):
        tiles(f"--config={tmp_path / 'mine.py'}")


def test_a_config_file_that_is_no_python(tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(UsageError, match=r"config: expected a Python file with get_config\(\), got mine.json"):
        tiles(f"--config={tmp_path / 'mine.json'}")


def test_the_items_of_tuples_are_checked_one_by_one():
    found = Every(numbers=(3, 1), ratio=0.5)
    options.check_least(found, numbers=1, ratio=0)
    options.check_some(found, "numbers", "names")
    with pytest.raises(UsageError, match="numbers: expected 2 or more, got 1"):
        options.check_least(found, numbers=2)
    with pytest.raises(UsageError, match="flags: expected at least one"):
        options.check_some(found, "numbers", "flags")


@pytest.mark.slow
def test_as_a_module_with_an_unknown_field():
    command = [sys.executable, "-m", "experiments.sweep", "--config=tiles.py", "--modles=ragged"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and run.stdout == "" and run.stderr.count("\n") == 1
    assert "did you mean models" in run.stderr
