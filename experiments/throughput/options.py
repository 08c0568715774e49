"""What the throughput benchmark is told: the fields of configs/throughput.py, checked."""

import dataclasses
from pathlib import Path

import jax

from experiments.bench.errors import UsageError
from experiments.bench.models import DTYPES, config_at
from experiments.bench.options import check_least, check_name
from experiments.throughput.case import Case
from experiments.throughput.load import Load
from experiments.throughput.long_prompt import LongPrompt
from experiments.throughput.shared_prefix import SharedPrefix
from tokenspeed import TINY
from tokenspeed.engine.sizes import least_batched_tokens
from tokenspeed.llm import MOST_BATCH
from tokenspeed.models.config import ModelConfig

GPU_MODELS, CPU_MODELS = ("llama-3.1-8b", "llama-3.2-1b"), ("tiny",)
GPU_DTYPES, CPU_DTYPES = ("bf16",), ("f32",)
GPU_CONCURRENCY, CPU_CONCURRENCY = (1, 8, 32, 64, 256), (1, 4)
GPU_INPUT, CPU_INPUT = 1024, 32
GPU_OUTPUT, CPU_OUTPUT = 128, 16
"""What is measured where nothing is named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; configs/throughput.py says what each field means."""

    models: tuple[str, ...]
    dtypes: tuple[str, ...]
    concurrency: tuple[int, ...]
    input_tokens: int
    output_tokens: int
    rounds: int
    least_requests: int
    long_prompts: tuple[int, ...]
    background: int
    short_tokens: int
    shared_prefixes: tuple[int, ...]
    repeats: int
    max_context: int
    max_batched_tokens: int
    kv_bytes: int
    seed: int
    results: str

    def __post_init__(self):
        for name in self.dtypes:
            check_name("dtypes", name, DTYPES)
        check_least(
            self, concurrency=1, input_tokens=0, output_tokens=0, rounds=1, least_requests=1, long_prompts=1,
            background=1, short_tokens=1, shared_prefixes=1, repeats=1, max_context=0,
            max_batched_tokens=0, kv_bytes=0, seed=0,
        )  # fmt: skip
        if self.output_tokens == 1:
            raise UsageError("output_tokens: expected 2 or more, or there is no time between tokens, got 1")
        for field, rows in (("concurrency", max(self.concurrency, default=0)), ("background", self.background + 2)):
            if rows > MOST_BATCH:
                most, got = (MOST_BATCH, rows) if field == "concurrency" else (MOST_BATCH - 2, rows - 2)
                raise UsageError(f"{field}: expected at most {most}, got {got}")
        if self.seed >= 2**32:
            raise UsageError(f"seed: expected at most {2**32 - 1}, got {self.seed}")


def _on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def implementation() -> str:
    """Of the kernels, on this machine."""
    return "triton" if _on_gpu() else "xla"


def dtypes(options: Options) -> tuple[str, ...]:
    """Those that are measured on this machine."""
    return tuple(dict.fromkeys(options.dtypes)) or (GPU_DTYPES if _on_gpu() else CPU_DTYPES)


def cases(options: Options) -> list[Case]:
    """Those of each model and dtype."""
    o, alone = options, not (options.long_prompts or options.shared_prefixes)
    inputs = o.input_tokens or (GPU_INPUT if _on_gpu() else CPU_INPUT)
    outputs = o.output_tokens or (GPU_OUTPUT if _on_gpu() else CPU_OUTPUT)
    concurrency = o.concurrency or ((GPU_CONCURRENCY if _on_gpu() else CPU_CONCURRENCY) if alone else ())
    loads = [
        Load(
            concurrency=most, requests=max(o.rounds * most, o.least_requests), input_tokens=inputs,
            output_tokens=outputs, seed=o.seed,
        )
        for most in dict.fromkeys(concurrency)
    ]  # fmt: skip
    long = [
        LongPrompt(
            long_tokens=tokens, background=o.background, input_tokens=inputs, short_tokens=o.short_tokens,
            repeats=o.repeats, seed=o.seed,
        )
        for tokens in dict.fromkeys(o.long_prompts)
    ]  # fmt: skip
    shared = [
        SharedPrefix(prefix_tokens=tokens, suffix_tokens=o.short_tokens, repeats=o.repeats, seed=o.seed)
        for tokens in dict.fromkeys(o.shared_prefixes)
    ]
    return [*loads, *long, *shared]


def max_batch(options: Options) -> int:
    """Of the engine of a model, which all cases share."""
    return max(case.rows for case in cases(options))


def max_context(options: Options) -> int:
    """Positions of a sequence, as asked for or as the cases need."""
    return options.max_context or max(case.positions for case in cases(options))


def configs(options: Options) -> dict[str, ModelConfig]:
    """The models by the names that their records will have, each checked for the longest case."""
    found: dict[str, ModelConfig] = {}
    if 0 < options.max_batched_tokens < (least := least_batched_tokens(max_batch(options))):
        raise UsageError(
            f"max_batched_tokens: expected 0, or {least} or more for so many requests, got {options.max_batched_tokens}"
        )
    needed = max(case.positions for case in cases(options))
    if options.max_context and needed > options.max_context:
        raise UsageError(f"max_context: expected {needed} or more, which the cases need, got {options.max_context}")
    for name in options.models or (GPU_MODELS if _on_gpu() else CPU_MODELS):
        short, config = config_at(str(Path(TINY) / "config.json") if name == "tiny" else name)
        if max_context(options) > config.max_positions:
            raise UsageError(
                f"max_context: {max_context(options)} positions are not in the {config.max_positions} of {short}"
            )
        if found.setdefault(short, config) != config:
            raise UsageError(f"models: two that differ are called {short}")
    return found
