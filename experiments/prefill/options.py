"""What the prefill benchmark is told: the fields of configs/prefill.py, checked."""

import dataclasses
from typing import Any

import jax

from experiments.bench.errors import UsageError
from experiments.bench.models import DTYPES, config_at
from experiments.bench.options import check_least, check_name, check_some
from tokenspeed.llm import MAX_BATCH
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.memory import PREFILL_TOKENS
from tokenspeed.models.prefill_attention import PREFILL_BACKENDS, resolve_prefill_backend

GPU_MODELS, CPU_MODELS = ("llama-3.1-8b", "llama-3.2-1b"), ("qwen2.5-0.5b",)
GPU_DTYPES, CPU_DTYPES = ("bf16",), ("f32",)
GPU_PROMPTS, CPU_PROMPTS = (128, 1024, 8192), (128,)
"""What is measured where nothing is named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; configs/prefill.py says what each field means."""

    models: tuple[str, ...]
    dtypes: tuple[str, ...]
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    starts: tuple[int, ...]
    chunks: tuple[int, ...]
    prefill_backend: str
    samples: int
    sequences: int
    check_up_to: int
    seed: int
    results: str

    def __post_init__(self):
        check_some(self, "batches")
        for name in self.dtypes:
            check_name("dtypes", name, DTYPES)
        if self.prefill_backend:
            check_name("prefill_backend", self.prefill_backend, PREFILL_BACKENDS)
        check_least(self, batches=1, prompts=1, starts=1, chunks=1, sequences=1, check_up_to=0, seed=0)
        check_least(self, samples=2 * self.sequences)
        if self.starts:
            check_some(self, "chunks")
        if max(self.batches) > MAX_BATCH:
            raise UsageError(f"batches: expected at most {MAX_BATCH}, got {max(self.batches)}")
        if self.seed >= 2**32:
            raise UsageError(f"seed: expected at most {2**32 - 1}, got {self.seed}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What one record is about: whole prompts (start 0), or a chunk of `tokens` behind `start` positions."""

    batch: int
    tokens: int
    start: int = 0


def _on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def implementation() -> str:
    """Of the kernels, on this machine."""
    return "triton" if _on_gpu() else "xla"


def dtypes(options: Options) -> tuple[str, ...]:
    """Those that are measured on this machine."""
    return tuple(dict.fromkeys(options.dtypes)) or (GPU_DTYPES if _on_gpu() else CPU_DTYPES)


def cases(options: Options) -> list[Case]:
    """Those of each model and dtype, prompts first."""
    prompts = options.prompts or (() if options.starts else GPU_PROMPTS if _on_gpu() else CPU_PROMPTS)
    lengths = [(tokens, 0) for tokens in prompts]
    lengths += [(tokens, start) for start in options.starts for tokens in options.chunks]
    return [Case(batch=batch, tokens=tokens, start=start) for batch in options.batches for tokens, start in lengths]


def limits(options: Options, config: ModelConfig) -> dict[str, Any]:
    """`max_context` and `max_batch` of an LLM for the prompts: its pool leaves memory to another LLM and to chunks.

    Contexts are long enough for its largest step of prefill.
    """
    longest = max((case.tokens + 1 for case in cases(options) if not case.start), default=1)
    return dict(max_context=min(max(longest, PREFILL_TOKENS), config.max_positions), max_batch=max(options.batches))


def configs(options: Options) -> dict[str, ModelConfig]:
    """The models by the names that their records will have, each checked for the longest case and for the backend."""
    found: dict[str, ModelConfig] = {}
    longest = max(case.start + case.tokens for case in cases(options)) + 1
    for name in options.models or (GPU_MODELS if _on_gpu() else CPU_MODELS):
        short, config = config_at(name)
        if longest > config.max_positions:
            field = "starts" if options.starts else "prompts"
            raise UsageError(f"{field}: {longest} positions are not in the {config.max_positions} of {short}")
        for dtype in dtypes(options):
            backend(options, config, dtype)
        if found.setdefault(short, config) != config:
            raise UsageError(f"models: two that differ are called {short}")
    return found


def backend(options: Options, config: ModelConfig, dtype: str) -> str:
    """Whose attention prefill runs; a named one that does not run here is an error."""
    try:
        return resolve_prefill_backend(
            options.prefill_backend or None,
            implementation=implementation(),
            dtype=DTYPES[dtype],
            head_dim=config.head_dim,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
