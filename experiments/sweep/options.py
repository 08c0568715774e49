"""What a sweep is told: the fields of configs/tiles.py, checked."""

import dataclasses

import pallas_kernels as pk
from experiments.bench.errors import UsageError
from experiments.bench.models import DTYPES, MODELS
from experiments.bench.options import check_kv_dtypes, check_least, check_name, check_some
from experiments.bench.pages import check_page_sizes
from experiments.bench.recorded import OPS

TILE_FIELDS = (
    "block_m",
    "block_n",
    "block_k",
    "block_t",
    "block_s",
    "splits",
    "num_warps",
    "num_stages",
    "mma",
    "swap_ab",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to sweep; configs/tiles.py says what each field means."""

    ops: tuple[str, ...]
    models: tuple[str, ...]
    rows: tuple[int, ...]
    dtypes: tuple[str, ...]
    contexts: tuple[int, ...]
    page_sizes: tuple[int, ...]
    kv_dtypes: tuple[str, ...]
    block_m: tuple[int, ...]
    block_n: tuple[int, ...]
    block_k: tuple[int, ...]
    block_t: tuple[int, ...]
    block_s: tuple[int, ...]
    splits: tuple[int, ...]
    num_warps: tuple[int, ...]
    num_stages: tuple[int, ...]
    mma: tuple[bool, ...]
    swap_ab: tuple[bool, ...]
    max_tiles: int
    max_tiles_many_rows: int
    samples: int
    quick_samples: int
    calls: int
    passes: int
    compile_workers: int
    time_limit_s: float
    devices: tuple[str, ...]
    lower_tiles: int
    interpret_model: str
    interpret_rows: tuple[int, ...]
    interpret_context: int
    interpret_tiles: int
    cpu_models: tuple[str, ...]
    seed: int
    results: str
    plots: str
    promote: bool

    def __post_init__(self):
        known = dict(ops=OPS, models=MODELS, dtypes=DTYPES, devices=pk.DEVICES, cpu_models=MODELS)
        for field, names in known.items():
            for name in getattr(self, field):
                check_name(field, name, names)
        check_name("interpret_model", self.interpret_model, MODELS)
        check_some(self, "ops", "models", "rows", "dtypes", "contexts", "page_sizes", "kv_dtypes", "devices")
        check_kv_dtypes("kv_dtypes", self.kv_dtypes)
        check_least(
            self, rows=1, contexts=1, page_sizes=0, interpret_rows=1, interpret_context=1, samples=1, quick_samples=1,
            max_tiles=0, max_tiles_many_rows=0, calls=0, passes=0, compile_workers=0, time_limit_s=0, lower_tiles=0,
            interpret_tiles=0, seed=0,
        )  # fmt: skip
        check_page_sizes("page_sizes", self.page_sizes, min(self.contexts))
        if self.seed >= 2**32:
            raise UsageError(f"seed: expected at most {2**32 - 1}, got {self.seed}")

    @property
    def restrictions(self) -> dict[str, tuple]:
        """The tile fields that are restricted, and to what."""
        return {field: getattr(self, field) for field in TILE_FIELDS if getattr(self, field)}
