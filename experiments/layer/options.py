"""What the benchmarks of layers are told."""

import dataclasses

from experiments.bench.errors import UsageError
from experiments.bench.models import DTYPES, check_models, config_of
from experiments.bench.options import check_least, check_name, check_some
from experiments.bench.pages import check_page_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which layers are timed.

    Attributes:
        models: names in configs/models. context: positions in the KV cache. batch: sequences at a time.
        page_size: positions of a page of the cache, whose pages lie in no order; 0 for a contiguous one.
        dtype: of weights, activations and cache.
        prefetch_kib: KiB of the next weight that each kernel asks for early; each value is timed, the tiles are chosen
            with the most of them.
        results: the file that records are appended to.
        files: for the choice of tiles, results of a sweep.
    """

    models: tuple[str, ...] = ("llama-3.1-8b", "llama-3.2-1b")
    context: int = 1024
    batch: int = 1
    page_size: int = 0
    dtype: str = "bf16"
    prefetch_kib: tuple[int, ...] = (0, 4096)
    results: str = "out/layer-{device}.jsonl"
    files: tuple[str, ...] = ()

    def __post_init__(self):
        check_some(self, "models", "prefetch_kib")
        check_models("models", self.models)
        check_name("dtype", self.dtype, DTYPES)
        check_least(self, context=1, batch=1, page_size=0, prefetch_kib=0)
        check_page_sizes("page_size", [self.page_size], self.context)
        for model in self.models:
            if self.context > config_of(model).max_positions:
                raise UsageError(f"context: {self.context} is more than the positions of {model}")
