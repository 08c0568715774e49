"""A command line with a config file: its overrides, and the frozen dataclass that both become. The sweep's is here."""

import dataclasses
import difflib
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from experiments.cases import DTYPES, OPS
from experiments.models import FOLDER, MODELS
from pallas_kernels.common.devices import DEVICES

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TILE_FIELDS = ("block_n", "block_k", "block_s", "splits", "num_warps", "num_stages", "mma", "programs")


class UsageError(Exception):
    """A mistake in what the user asked for; its one line is all that is printed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to sweep; configs/tiles.py says what each field means."""

    ops: tuple[str, ...]
    models: tuple[str, ...]
    rows: tuple[int, ...]
    dtypes: tuple[str, ...]
    contexts: tuple[int, ...]
    block_n: tuple[int, ...] = ()
    block_k: tuple[int, ...] = ()
    block_s: tuple[int, ...] = ()
    splits: tuple[int, ...] = ()
    num_warps: tuple[int, ...] = ()
    num_stages: tuple[int, ...] = ()
    mma: tuple[bool, ...] = ()
    programs: tuple[int, ...] = ()
    max_tiles: int = 0
    samples: int = 15
    quick_samples: int = 3
    calls: int = 0
    passes: int = 0
    compile_workers: int = 0
    time_limit_s: float = 0.0
    devices: tuple[str, ...] = tuple(DEVICES)
    lower_tiles: int = 6
    interpret_model: str = "tiny"
    interpret_rows: tuple[int, ...] = (1, 3)
    interpret_context: int = 80
    interpret_tiles: int = 8
    cpu_models: tuple[str, ...] = ()
    seed: int = 0
    results: str = "out/sweep-{device}.jsonl"
    plots: str = "out/plots"

    def __post_init__(self):
        known = dict(
            ops=OPS, models=MODELS, dtypes=DTYPES, devices=DEVICES, cpu_models=MODELS, interpret_model=MODELS
        )  # fmt: skip
        for field, names in known.items():
            value = getattr(self, field)
            for name in (value,) if isinstance(value, str) else value:
                check_name(field, name, names)
        for field in ("ops", "models", "rows", "dtypes", "contexts", "devices"):
            if not getattr(self, field):
                raise UsageError(f"{field}: expected at least one")
        for field in ("rows", "interpret_rows"):
            for rows in getattr(self, field):
                if not 1 <= rows <= 16:
                    raise UsageError(f"{field}: expected 1 to 16, got {rows}")
        for field in ("samples", "quick_samples", "interpret_context"):
            if getattr(self, field) < 1:
                raise UsageError(f"{field}: expected 1 or more, got {getattr(self, field)}")
        for field, value in dataclasses.asdict(self).items():
            if isinstance(value, int | float) and value < 0:
                raise UsageError(f"{field}: expected 0 or more, got {value}")
        if min(self.contexts) < 1:
            raise UsageError(f"contexts: expected 1 or more, got {min(self.contexts)}")

    @property
    def restrictions(self) -> dict[str, tuple]:
        """The tile fields that are restricted, and to what."""
        return {field: getattr(self, field) for field in TILE_FIELDS if getattr(self, field)}


def fields_of(kind: type) -> dict[str, dataclasses.Field]:
    """The fields of a dataclass of options by name."""
    return {field.name: field for field in dataclasses.fields(kind)}


def nearest(name: str, names: Iterable[str]) -> str:
    """': did you mean X?' for a name close to a known one, else the list of known ones."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"


def check_name(field: str, name: Any, names: Iterable[str]) -> None:
    if name not in names:
        raise UsageError(f"{field}: unknown {name!r}; {nearest(str(name), names)}")


def check_published(models: Iterable[str], folder: Path = FOLDER) -> None:
    """Raises unless each is the name of a model's file in the folder."""
    names = sorted(path.stem for path in folder.glob("*.json"))
    for model in models:
        check_name("models", model, names)


def from_config[Kind](config: config_dict.ConfigDict, kind: type[Kind] = Options) -> Kind:
    """The options in an ml_collections config; a field that `kind` does not know, or of another type, is an error."""
    values, fields = {}, fields_of(kind)
    for name, value in config.items():
        check_name("config", name, fields)
        values[name] = _typed(fields[name], value)
    missing = [
        name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values
    ]  # fmt: skip
    if missing:
        raise UsageError(f"config: lacks {', '.join(missing)}")
    return kind(**values)


def _typed(field: dataclasses.Field, value: Any) -> Any:
    name, wanted = field.name, str(field.type)
    if not wanted.startswith("tuple"):
        kind = {"int": int, "float": (int, float), "str": str}[wanted.removeprefix("<class '").removesuffix("'>")]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise UsageError(f"{name}: expected {field.type.__name__}, got {value!r}")
        return value
    if isinstance(value, str):
        value = tuple(part.strip() for part in value.split(",") if part.strip())
    if not isinstance(value, tuple | list):
        value = (value,)
    value = tuple(item for item in value if item != "")
    kind = str if "str" in wanted else bool if "bool" in wanted else int
    for item in value:
        if type(item) is not kind:
            raise UsageError(f"{name}: expected a tuple of {kind.__name__}, got {item!r}")
    return value


def config_path(name: str) -> str:
    """A config's path: as given where there is such a file, else the file of that name in configs/."""
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.py"):
        if path.is_file():
            return str(path)
    known = sorted(path.name for path in CONFIGS.glob("*.py") if path.name != "__init__.py")
    raise UsageError(f"config: no file {name!r}, here or in configs/; {nearest(name, known)}")


def load(path: str | Path) -> config_dict.ConfigDict:
    """`get_config()` of a config file."""
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def parse[Kind](
    argv: Sequence[str], flag_values: flags.FlagValues, kind: type[Kind] = Options, default: str = "tiles.py"
) -> tuple[Kind, flags.FlagValues]:
    """The options on a command line (argv[0] is the program), and the other flags, already defined in `flag_values`.

    Args:
        kind: the dataclass of the options. default: the config that is read where none is named.
    """
    argv = [argv[0], *(_readable(argument, fields_of(kind)) for argument in _joined(argv[1:]))]
    if not any(argument.startswith("--config=") for argument in argv):
        argv.insert(1, f"--config={config_path(default)}")
    config_flags.DEFINE_config_file("config", None, "A file of configs/, or a path.", flag_values, sys_argv=argv)
    try:
        rest = flag_values(argv)
        if len(rest) > 1:
            raise UsageError(f"unexpected argument {rest[1]!r}")
        return from_config(flag_values.config, kind), flag_values
    except flags.Error as error:
        raise UsageError(" ".join(str(error).split())) from None


def _joined(arguments: Sequence[str]) -> list[str]:
    """With the value of `--config NAME` and `--config.field VALUE` joined by '='."""
    joined, waiting = [], None
    for argument in arguments:
        if waiting is not None:
            joined.append(f"{waiting}={argument}")
            waiting = None
        elif re.fullmatch(r"--?config(\.\w+)?", argument):
            waiting = argument
        else:
            joined.append(argument)
    if waiting is not None:
        raise UsageError(f"{waiting}: expected a value")
    return joined


def _readable(argument: str, fields: dict[str, dataclasses.Field]) -> str:
    """Resolves the name of a config, checks that of an override, and quotes a tuple of bare words."""
    match = re.fullmatch(r"--?config(?:\.([\w.]+))?=(.*)", argument, re.DOTALL)
    if match is None:
        return argument
    field, value = match.groups()
    if field is None:
        return f"--config={config_path(value)}"
    check_name("config", field, fields)
    if "str" in str(fields[field].type) and "," in value and not value.startswith(("(", "[")):
        value = repr(tuple(part.strip() for part in value.split(",") if part.strip()))
    return f"--config.{field}={value}"


def fail(error: Exception) -> int:
    """Prints an error's one line; returns the exit status."""
    print(f"error: {error}", file=sys.stderr)
    return 2
