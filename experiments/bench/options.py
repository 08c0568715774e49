"""The command line of every experiment: options are the fields of a dataclass, set by a config file and by overrides.

    python -m experiments.NAME [FILES ...] [--config=FILE] [--FIELD=VALUE ...]

FILE is an ml_collections file of configs/, or a path; where a command has none of its own, the fields have defaults.
`--FIELD=VALUE` is short for `--config.FIELD=VALUE`; a tuple is written with commas, a bool may stand without a value.
"""

import dataclasses
import difflib
import importlib.util
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from experiments.bench.errors import ResultsError, UsageError

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
    """Runs a command; the exit status: what `run` returns (None is 0), or 2 after a one-line error.

    Args:
        run: takes the options, and the command as records have it.
        kind: the dataclass of the options. module: what `python -m` is given. doc: printed by `--help`.
        config: the file of configs/ that is read where none is named; None where the fields have defaults.
        argv: the arguments; None for those of this process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
    if any(argument in ("--help", "-h") for argument in argv):
        print(doc.strip(), "", *(f"  --{name}: {_type_of(field)}" for name, field in _fields(kind).items()), sep="\n")
        return 0
    try:
        return run(parse(argv, kind, config), shown_command(["python", "-m", module, *argv])) or 0
    except (UsageError, ResultsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse[Options](argv: Sequence[str], kind: type[Options], config: str | None = None) -> Options:
    """The options that these arguments say.

    Raises:
        UsageError: an argument is unknown or of another type, or a config cannot be found or read.
    """
    fields, argv = _fields(kind), _joined(argv)
    files = [argument for argument in argv if not argument.startswith("-")]
    if files and FILES not in fields:
        raise UsageError(f"unexpected argument {files[0]!r}")
    # Of one field given twice the last counts; ml_collections would join two tuples.
    overrides = dict(_override(argument, fields) for argument in argv if argument.startswith("-"))
    named = overrides.pop("config", None)
    base = _defaults(kind, config) if named is None else load(config_path(named))
    values = flags.FlagValues()
    arguments = ["program", *(f"--config.{name}={value}" for name, value in overrides.items())]
    config_flags.DEFINE_config_dict("config", base, "", values, sys_argv=arguments)
    try:
        values(arguments)
    except (flags.Error, ValueError, TypeError) as error:
        raise UsageError(_said(str(error), fields)) from None
    found = values.config.to_dict()
    return from_dict(found | {FILES: tuple(files)} if files else found, kind)


def from_dict[Options](values: dict[str, Any], kind: type[Options]) -> Options:
    """The options in a config; a field that `kind` does not know, that lacks, or of another type is an error."""
    fields, found = _fields(kind), {}
    for name, value in values.items():
        check_name("config", name, fields)
        found[name] = _typed(fields[name], value)
    missing = [
        name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in found
    ]  # fmt: skip
    if missing:
        raise UsageError(f"config: lacks {', '.join(missing)}")
    return kind(**found)


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
        return module.get_config()
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


def check_some(options: Any, *fields: str) -> None:
    """Raises unless each of these tuples has an item."""
    for field in fields:
        if not getattr(options, field):
            raise UsageError(f"{field}: expected at least one")


def shown_command(command: Sequence[str]) -> str:
    """The command as typed, but for absolute paths, of which only the last part is kept."""
    return " ".join(re.sub(r"(^|(?<==))/\S*/", "", argument) for argument in command)


def _fields(kind: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(kind)}


def _type_of(field: dataclasses.Field) -> str:
    return field.type.__name__ if isinstance(field.type, type) and not typing.get_args(field.type) else str(field.type)


def _defaults(kind: type, config: str | None) -> config_dict.ConfigDict:
    if config is not None:
        return load(config_path(config))
    return config_dict.ConfigDict({name: field.default for name, field in _fields(kind).items()})


def _joined(arguments: Sequence[str]) -> list[str]:
    """With the value of `--config NAME` and of `--config.FIELD VALUE` joined by '='."""
    joined: list[str] = []
    waiting = False
    for argument in arguments:
        if waiting:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
        waiting = not waiting and re.fullmatch(r"--?config(\.\w+)?", argument) is not None
    if waiting:
        raise UsageError(f"{joined[-1]}: expected a value")
    return joined


def _said(error: str, fields: dict[str, dataclasses.Field]) -> str:
    """The library's error in our words."""
    match = re.match(r"flag --config\.(\w+)=(.*?): ", error, re.DOTALL)
    if match is None or match[1] not in fields:
        return " ".join(error.split())
    return f"{match[1]}: expected {_type_of(fields[match[1]])}, got {match[2]!r}"


def _override(argument: str, fields: dict[str, dataclasses.Field]) -> tuple[str, str]:
    """(field, value) of an argument; a tuple of bare words is quoted, as ml_collections wants it."""
    match = re.fullmatch(r"--?(?:config\.)?([\w.]+)(?:=(.*))?", argument, re.DOTALL)
    if match is None:
        raise UsageError(f"unexpected argument {argument!r}")
    name, value = match.groups()
    if name == "config":
        return name, value or ""
    check_name("config", name, fields)
    wanted = _type_of(fields[name])
    if value is None:
        if wanted != "bool":
            raise UsageError(f"{name}: expected a value: --{name}=...")
        return name, "true"
    if wanted.startswith("tuple") and not value.startswith(("(", "[")):
        items = [part.strip() for part in value.split(",") if part.strip()]
        value = repr(tuple(items)) if "str" in wanted else f"({','.join(items)}{',' if items else ''})"
    return name, value


def _typed(field: dataclasses.Field, value: Any) -> Any:
    name, wanted = field.name, _type_of(field)
    kinds = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    if not wanted.startswith("tuple"):
        if not isinstance(value, kinds[wanted]) or (isinstance(value, bool) and wanted != "bool"):
            raise UsageError(f"{name}: expected {wanted}, got {value!r}")
        return value
    item_kind = next(kind for kind in kinds if f"tuple[{kind}" in wanted)
    value = tuple(value) if isinstance(value, tuple | list) else (value,)
    for item in value:
        if not isinstance(item, kinds[item_kind]) or (isinstance(item, bool) and item_kind != "bool"):
            raise UsageError(f"{name}: expected a tuple of {item_kind}, got {item!r}")
    return value
