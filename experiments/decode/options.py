"""What the decode benchmark is told: the fields of configs/decode.py, checked."""

import dataclasses

import jax

import pallas_kernels as pk
from experiments.bench.errors import UsageError
from experiments.bench.models import DTYPES, config_at
from experiments.bench.options import check_kv_dtypes, check_least, check_name, check_some
from tokenspeed.models.config import ModelConfig

TIMED = tuple(name for name in pk.IMPLEMENTATIONS if name != "interpret")
"""The interpreter checks kernels; its time says nothing."""
DEFAULT_IMPLEMENTATIONS = ("triton", "xla")
GPU_MODELS, CPU_MODELS = ("llama-3.1-8b", "llama-3.2-1b"), ("qwen2.5-0.5b",)
GPU_DTYPES, CPU_DTYPES = ("bf16",), ("f32",)
"""What is measured where nothing is named: a processor needs a small model, and XLA is slow at bf16 there."""
GPU_COMPILATIONS = 3
"""Of XLA's step they differ by about 1%; see `case.Case`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; configs/decode.py says what each field means."""

    models: tuple[str, ...]
    dtypes: tuple[str, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    page_sizes: tuple[int, ...]
    kv_dtypes: tuple[str, ...]
    implementations: tuple[str, ...]
    steps: int
    sequences: int
    repeats: int
    compilations: int
    seed: int
    results: str
    picture: str
    profile: str

    def __post_init__(self):
        check_some(self, "batches", "contexts", "page_sizes", "kv_dtypes")
        check_kv_dtypes("kv_dtypes", self.kv_dtypes)
        for field, names in (("dtypes", DTYPES), ("implementations", TIMED)):
            for name in getattr(self, field):
                check_name(field, name, names)
        check_least(
            self, batches=1, contexts=1, page_sizes=0, steps=1, sequences=1, repeats=2, compilations=0, seed=0
        )  # fmt: skip
        if self.seed >= 2**32:
            raise UsageError(f"seed: expected at most {2**32 - 1}, got {self.seed}")
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
        return pk.resolve_implementation(name) == name
    except ValueError:
        return False


def dtypes(options: Options) -> tuple[str, ...]:
    """Those that are measured on this machine."""
    return tuple(dict.fromkeys(options.dtypes)) or (GPU_DTYPES if jax.default_backend() == "gpu" else CPU_DTYPES)


def compilations(options: Options) -> int:
    """How often each program is compiled on this machine."""
    return options.compilations or (GPU_COMPILATIONS if jax.default_backend() == "gpu" else 1)


def configs(options: Options) -> dict[str, ModelConfig]:
    """The models by the names that their records will have, each checked for the longest context."""
    found: dict[str, ModelConfig] = {}
    for name in options.models or (GPU_MODELS if jax.default_backend() == "gpu" else CPU_MODELS):
        short, config = config_at(name)
        check_context(name, config, max(options.contexts), options.steps)
        if found.setdefault(short, config) != config:
            raise UsageError(f"models: two that differ are called {short}")
    return found


def check_context(model: str, config: ModelConfig, context: int, steps: int, field: str = "contexts") -> None:
    """Raises unless a model has the positions of that context, the value of `field`, and of so many steps more."""
    if context + steps > config.max_positions:
        raise UsageError(
            f"{field}: {context} and {steps} steps more are not in the {config.max_positions} positions of {model}"
        )
