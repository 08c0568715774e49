"""What the ablations and the counters are told."""

import dataclasses

from experiments.ablation.ablations import ABLATIONS
from experiments.bench.errors import UsageError
from experiments.bench.models import DTYPES, check_models, config_of
from experiments.bench.options import check_least, check_name, check_some
from experiments.decode.options import check_context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which steps are measured.

    Attributes:
        models: names in configs/models. context: positions in the cache before the first step.
        batch: sequences at a time. dtype: of weights, activations and cache.
        ablations: their names; all of them if empty.
        steps: of a sample. sequences: of their own random cache and first token. repeats: samples of each.
        seed: of weights and caches. results: the file that records are appended to.
    """

    models: tuple[str, ...] = ("llama-3.1-8b", "llama-3.2-1b")
    context: int = 1024
    batch: int = 1
    dtype: str = "bf16"
    ablations: tuple[str, ...] = ()
    steps: int = 127
    sequences: int = 3
    repeats: int = 3
    seed: int = 0
    results: str = "out/ablation-{device}.jsonl"

    def __post_init__(self):
        check_some(self, "models")
        check_models("models", self.models)
        check_name("dtype", self.dtype, DTYPES)
        for name in self.ablations:
            check_name("ablations", name, [one.name for one in ABLATIONS])
        check_least(self, context=1, batch=1, steps=1, sequences=1, repeats=2, seed=0)
        if self.seed >= 2**32:
            raise UsageError(f"seed: expected at most {2**32 - 1}, got {self.seed}")
        for model in self.models:
            check_context(model, config_of(model), self.context, self.steps, "context")
