"""The command line of every experiment: options are the fields of a dataclass, set by a config file and by overrides.

    python -m experiments.NAME [FILES ...] [--config=FILE] [--FIELD=VALUE ...]

FILE is an ml_collections file of configs/, or a path; where a command has none of its own, the fields have defaults.
`--FIELD=VALUE` is short for `--config.FIELD=VALUE`; a tuple is written with commas, a bool may stand without a value.
"""

import dataclasses
import difflib
import importlib.util
import math
import re
import shlex
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from experiments.bench.ending import ended
from experiments.bench.errors import ResultsError, UsageError
from tokenspeed.models import kv_dtypes

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = "files"
"""The field that takes what stands on the command line without a name."""


def main[Options](
    run: Callable[[Options, str], int | None],
    kind: type[Options],
    module: str,
    doc: str,
    *,
    config: str | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Runs a command; the exit status: what `run` returns (None is 0), 2 after a one-line error, or as `ended` has it.

    Args:
        run: takes the options, and the command as records have it.
        kind: the dataclass of the options. module: what `python -m` is given. doc: printed by `--help`.
        config: the file of configs/ that is read where none is named; None where the fields have defaults.
        argv: the arguments; None for those of this process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)

    def command() -> int:
        if any(argument in ("--help", "-h") for argument in argv):
            fields = (f"  --{name}: {_type_of(field)}" for name, field in _fields(kind).items())
            print(doc.strip(), "", *fields, sep="\n")
            return 0
        try:
            return run(parse(argv, kind, config), shown_command(["python", "-m", module, *argv])) or 0
        except (UsageError, ResultsError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return ended(command)


def parse[Options](argv: Sequence[str], kind: type[Options], config: str | None = None) -> Options:
    """The options that these arguments say.

    Raises:
        UsageError: an argument is unknown or of another type, or a config cannot be found or read.
    """
    fields = _fields(kind)
    argv = _joined(argv, fields)
    files = [argument for argument in argv if not argument.startswith("-")]
    if files and FILES not in fields:
        raise UsageError(f"unexpected argument {files[0]!r}")
    # Of one field given twice the last counts; ml_collections would join two tuples.
    typed = dict(_override(argument, fields) for argument in argv if argument.startswith("-"))
    named = typed.pop("config", None)
    base = _defaults(kind, config) if named is None else load(config_path(named))
    _check_fields(base, fields)
    values = flags.FlagValues()
    arguments = ["program", *(f"--config.{name}={_quoted(fields[name], value)}" for name, value in typed.items())]
    config_flags.DEFINE_config_dict("config", base, "", values, sys_argv=arguments)
    try:
        values(arguments)
    except (flags.Error, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise UsageError(_said(str(error), fields, typed)) from None
    found = values.config.to_dict()
    for name, text in typed.items():
        if not _is_typed(fields[name], found[name]):
            raise _wrong(fields[name], text)
    return from_dict(found | {FILES: tuple(files)} if files else found, kind)


def from_dict[Options](values: dict[str, Any], kind: type[Options]) -> Options:
    """The options in a config; a field that `kind` does not know, that lacks, or of another type is an error."""
    fields = _fields(kind)
    _check_fields(values, fields)
    for name, value in values.items():
        if not _is_typed(fields[name], value):
            raise _wrong(fields[name], value)
    return kind(**{name: _tuple(value) if _is_tuple(fields[name]) else value for name, value in values.items()})


def config_path(name: str) -> Path:
    """A config's path: as given where there is such a file, else the file of that name in configs/."""
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.py"):
        if path.is_file():
            return path
    known = sorted(path.name for path in CONFIGS.glob("*.py") if path.name != "__init__.py")
    raise UsageError(f"config: no file {name!r}, here or in configs/; {nearest(name, known)}")


def load(path: Path) -> config_dict.ConfigDict:
    """`get_config()` of a config file."""
    spec = importlib.util.spec_from_file_location("config", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"config: expected a Python file with get_config(), got {path.name}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made = module.get_config()
        if not isinstance(made, config_dict.ConfigDict):
            raise TypeError(f"expected get_config() to return a ConfigDict, got {type(made).__name__}")
        return made
    except Exception as error:  # it is the user's program
        raise UsageError(f"config: {path.name}: {type(error).__name__}: {' '.join(str(error).split())}") from None


def nearest(name: str, names: Iterable[str]) -> str:
    """'did you mean X?' for a name close to a known one, else the list of known ones."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"


def check_name(field: str, name: Any, names: Iterable[str]) -> None:
    """Raises unless the name is one of those; the message has the nearest."""
    if name not in names:
        raise UsageError(f"{field}: unknown {name!r}; {nearest(str(name), names)}")


def check_least(options: Any, **least: int) -> None:
    """Raises unless each of these fields, or each item of one that is a tuple, is at least that."""
    for field, lowest in least.items():
        value = getattr(options, field)
        for item in value if isinstance(value, tuple) else (value,):
            if item < lowest:
                raise UsageError(f"{field}: expected {lowest} or more, got {item}")


def check_kv_dtypes(field: str, values: Iterable[str]) -> None:
    """Raises unless each says what keys and values are stored in."""
    for value in values:
        try:
            kv_dtypes.check(field, value)
        except ValueError as error:
            raise UsageError(str(error)) from None


def check_some(options: Any, *fields: str) -> None:
    """Raises unless each of these tuples has an item."""
    for field in fields:
        if not getattr(options, field):
            raise UsageError(f"{field}: expected at least one")


def shown_command(command: Sequence[str]) -> str:
    """The command as a shell takes it, but for absolute paths, of which only the last part is kept."""
    return shlex.join(re.sub(r"(^|(?<=[=\s]))/\S*/", "", argument) for argument in command)


def _fields(kind: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(kind)}


def _type_of(field: dataclasses.Field) -> str:
    return field.type.__name__ if isinstance(field.type, type) and not typing.get_args(field.type) else str(field.type)


def _defaults(kind: type, config: str | None) -> config_dict.ConfigDict:
    if config is not None:
        return load(config_path(config))
    return config_dict.ConfigDict({name: field.default for name, field in _fields(kind).items()})


def _joined(arguments: Sequence[str], fields: dict[str, dataclasses.Field]) -> list[str]:
    """With the value of `--config NAME` and of `--config.FIELD VALUE` joined by '='; a bool may stand without one."""
    joined: list[str] = []
    waiting = flag = False
    for argument in arguments:
        if waiting and not (flag and argument.lower() not in ("true", "false")):
            joined[-1] += f"={argument}"
            waiting = False
            continue
        joined.append(argument)
        match = re.fullmatch(r"--?config(?:\.(\w+))?", argument)
        waiting, flag = match is not None, bool(match and _is_flag(fields.get(match[1])))
    if waiting and not flag:
        raise UsageError(f"{joined[-1]}: expected a value")
    return joined


def _is_flag(field: dataclasses.Field | None) -> bool:
    return field is not None and _type_of(field) == "bool"


def _said(error: str, fields: dict[str, dataclasses.Field], typed: dict[str, str]) -> str:
    """The library's error in our words."""
    match = re.match(r"flag --config\.(\w+)=", error)
    if match is None or match[1] not in typed:
        return " ".join(error.split()) or "config: a value is too long"
    return str(_wrong(fields[match[1]], typed[match[1]]))


def _override(argument: str, fields: dict[str, dataclasses.Field]) -> tuple[str, str]:
    """(field, value) of an argument, as typed."""
    match = re.fullmatch(r"--?(?:config\.)?([\w.]+)(?:=(.*))?", argument, re.DOTALL)
    if match is None:
        raise UsageError(f"unexpected argument {argument!r}")
    name, value = match.groups()
    if name == "config":
        return name, value or ""
    check_name("config", name, fields)
    if value is None:
        if not _is_flag(fields[name]):
            raise UsageError(f"{name}: expected a value: --{name}=...")
        return name, "true"
    return name, value


def _quoted(field: dataclasses.Field, value: str) -> str:
    """As ml_collections wants it: a tuple in brackets, of bare words in quotes."""
    if not _is_tuple(field) or value.startswith(("(", "[")):
        return value
    items = [part.strip() for part in value.split(",") if part.strip()]
    return repr(tuple(items)) if "str" in _type_of(field) else f"({','.join(items)}{',' if items else ''})"


KINDS: dict[str, Callable[[Any], bool]] = dict(
    int=lambda value: type(value) is int and abs(value) < 2**63,
    float=lambda value: type(value) in (int, float) and math.isfinite(value),
    str=lambda value: isinstance(value, str),
    bool=lambda value: isinstance(value, bool),
)
"""What a value of each kind is."""


def _check_fields(values: Iterable[str], fields: dict[str, dataclasses.Field]) -> None:
    """Raises unless these are the names of all fields that have no default, and of no others."""
    names = list(values)
    for name in names:
        check_name("config", name, fields)
    lacks = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in names]
    if lacks:
        raise UsageError(f"config: lacks {', '.join(lacks)}")


def _is_tuple(field: dataclasses.Field) -> bool:
    return _type_of(field).startswith("tuple")


def _tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _is_typed(field: dataclasses.Field, value: Any) -> bool:
    """Whether it is of the field's type; one item may stand for a tuple of it."""
    return all(map(KINDS[_kind(field)], _tuple(value) if _is_tuple(field) else (value,)))


def _kind(field: dataclasses.Field) -> str:
    return _type_of(field).removeprefix("tuple[").split(",")[0]


def _wrong(field: dataclasses.Field, value: Any) -> UsageError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    finite = "finite " if _kind(field) == "float" else ""
    return UsageError(f"{field.name}: expected {'a tuple of ' * _is_tuple(field)}{finite}{_kind(field)}, got {shown}")
