"""What the decode benchmark is told: the fields of configs/decode.py, checked."""

import dataclasses
from pathlib import Path

import jax

from experiments.cases import DTYPES
from experiments.models import FOLDER
from experiments.options import UsageError, check_name, check_published
from pallas_kernels.common.checks import MAX_ROWS
from pallas_kernels.common.implementation import IMPLEMENTATIONS, resolve
from tokenspeed.config import ConfigError, ModelConfig, read_json

TIMED = tuple(name for name in IMPLEMENTATIONS if name != "interpret")
"""The interpreter checks kernels; its time says nothing."""
DEFAULT_IMPLEMENTATIONS = ("triton", "xla")
GPU_MODELS, CPU_MODELS = ("llama-3.1-8b", "llama-3.2-1b"), ("qwen2.5-0.5b",)
GPU_DTYPES, CPU_DTYPES = ("bf16",), ("f32",)
"""What is measured where nothing is named: a processor needs a small model, and XLA is slow at bf16 there."""
GPU_COMPILATIONS = 3
"""Of XLA's step they differ by about 1%; see `decode_case.Case`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; configs/decode.py says what each field means."""

    models: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = (1024,)
    implementations: tuple[str, ...] = ()
    steps: int = 127
    sequences: int = 5
    repeats: int = 2
    compilations: int = 0
    seed: int = 0
    results: str = "out/decode-{device}.jsonl"
    picture: str = "out/decode-{device}.png"
    profile: str = ""

    def __post_init__(self):
        for field in ("batches", "contexts"):
            if not getattr(self, field):
                raise UsageError(f"{field}: expected at least one")
        for field, names in (("dtypes", DTYPES), ("implementations", TIMED)):
            for name in getattr(self, field):
                check_name(field, name, names)
        for field, least in (("steps", 1), ("sequences", 1), ("repeats", 2), ("compilations", 0)):
            if getattr(self, field) < least:
                raise UsageError(f"{field}: expected {least} or more, got {getattr(self, field)}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}")
        if min(self.contexts) < 1:
            raise UsageError(f"contexts: expected 1 or more, got {min(self.contexts)}")
        for batch in self.batches:
            if not 1 <= batch <= MAX_ROWS:
                raise UsageError(f"batches: expected 1 to {MAX_ROWS}, got {batch}")
        if self.picture and not self.picture.endswith(".png"):
            raise UsageError(f"picture: expected a path that ends in .png, got {self.picture!r}")


def implementations(options: Options) -> tuple[str, ...]:
    """Those that are timed on this machine; a named one that does not run here is an error."""
    for name in options.implementations:
        if not _runs_here(name):
            raise UsageError(f"implementations: {name!r} needs an NVIDIA GPU; 'xla' runs here")
    return tuple(dict.fromkeys(options.implementations)) or tuple(filter(_runs_here, DEFAULT_IMPLEMENTATIONS))


def _runs_here(name: str) -> bool:
    try:
        return resolve(name) == name
    except ValueError:
        return False


def dtypes(options: Options) -> tuple[str, ...]:
    """Those that are measured on this machine."""
    return tuple(dict.fromkeys(options.dtypes)) or (GPU_DTYPES if jax.default_backend() == "gpu" else CPU_DTYPES)


def compilations(options: Options) -> int:
    """How often each program is compiled on this machine."""
    return options.compilations or (GPU_COMPILATIONS if jax.default_backend() == "gpu" else 1)


def configs(options: Options) -> dict[str, ModelConfig]:
    """The models by the names that their rows will have, each checked for the longest context."""
    found = {}
    for name in options.models or (GPU_MODELS if jax.default_backend() == "gpu" else CPU_MODELS):
        path = _path(name)
        try:
            config = ModelConfig.from_dict(read_json(path))
        except ConfigError as error:
            raise UsageError(f"models: {name}: {error}") from None
        longest = max(options.contexts)
        if longest + options.steps > config.max_positions:
            raise UsageError(
                f"contexts: {longest} and {options.steps} steps more are not in the {config.max_positions} positions "
                f"of {name}"
            )
        short = path.resolve().parent.name if path.name == "config.json" else path.stem
        if found.setdefault(short, config) != config:
            raise UsageError(f"models: two that differ are called {short}")
    return found


def _path(name: str) -> Path:
    """Of a model's config.json, by its name in configs/models or as a path."""
    if (FOLDER / f"{name}.json").is_file():
        return FOLDER / f"{name}.json"
    if not Path(name).is_file():
        check_published([name], FOLDER)
    return Path(name)
