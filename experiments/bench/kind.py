"""What a kind of record is, and the fields that several kinds have."""

import dataclasses

from experiments.bench.fields import (
    AMOUNT,
    CLOCKS,
    COUNT,
    DTYPE,
    FLAG,
    POSITIVE,
    SIZE,
    STORED_KV,
    TEXT,
    TILES,
    Type,
    one_of,
)

Fields = dict[str, tuple[Type, str]]
"""name -> (type, meaning)"""

ORIGIN = dict(
    device=(TEXT, "jax's name of the device; of a processor followed by what it calls itself"),
    driver=(TEXT, "version of the GPU's driver"),
    clocks=(CLOCKS, "MHz of multiprocessors and memory when the run began, and the most they can have"),
    jax=(TEXT, "its version"),
    sources=(TEXT, "digest over the sources of all of this project that the record's measurement ran"),
    commit=(TEXT, "of this repository"),
    dirty=(FLAG, "whether tracked files differed from it"),
    command=(TEXT, "that made the record"),
    date=(TEXT, "when the record was made, UTC"),
)
PAGE_SIZE = COUNT, "positions of a page of the KV cache, 0 where that is contiguous; null where it has no part"
KV_DTYPE = (
    STORED_KV,
    "what keys and values are stored in: auto (as dtype says), fp8 or int8, or two of them as keys/values; null where "
    "the cache has no part",
)
FIXED_POINT = (
    COUNT,
    "bits of the fixed point in which these tiles have their activations; null: floats, or none of their own",
)
CASE = dict(
    op=(TEXT, "the function of pallas_kernels"),
    model=(TEXT, "a name of configs/models"),
    rows=(SIZE, "activation rows of a call"),
    context=(SIZE, "positions of the KV cache; null where it has no part in the case"),
    page_size=PAGE_SIZE,
    kv_dtype=KV_DTYPE,
    dtype=(DTYPE, "bf16, f16 or f32, of weights, activations and cache"),
    fixed_point=FIXED_POINT,
    tiles=(TILES, "as the op's dataclass of tiles"),
)
STATUS = dict(status=(TEXT, "'ok', or in words why there is no figure, or why it does not count"))
ERRORS = dict(
    error=(AMOUNT, "relative RMS error of the kernel, against the reference on float32 operands"),
    error_xla=(AMOUNT, "that of XLA on the operands as they are"),
)
CALL_US = dict(
    median_us=(POSITIVE, "of one call"),
    p10_us=(POSITIVE, "10th percentile over the samples"),
    p90_us=(POSITIVE, "90th percentile"),
    samples=(COUNT, "how many"),
)
RATE = dict(
    bytes=(POSITIVE, "that must move, each once"),
    achieved_gbps=(AMOUNT, "bytes by the time"),
    ceiling_gbps=(POSITIVE, "read ceiling of the device, measured in the same run"),
    percent_of_ceiling=(AMOUNT, "achieved_gbps of ceiling_gbps"),
)
STEP = dict(
    model=(TEXT, "a name of configs/models, or of the folder of a config.json"),
    dtype=(DTYPE, "bf16, f16 or f32, of weights, activations and cache"),
    batch=(SIZE, "sequences at a time"),
    context=(SIZE, "positions in the cache before the first step"),
    implementation=(TEXT, "of the kernels"),
)
STEP_MS = dict(
    ms_per_token=(POSITIVE, "median of one step, in which each sequence gets a token"),
    ms_p5=(POSITIVE, "5th percentile over the samples, which are means over the steps of a call"),
    ms_p95=(POSITIVE, "95th percentile"),
    samples=(COUNT, "how many calls"),
    steps=(COUNT, "of a call"),
    tokens_checked=(COUNT, "drawn by different sequences, each the same in every run"),
)
PREFILL_BACKEND = one_of("cudnn", "xla"), "whose attention prefill ran"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of record.

    Attributes:
        what: it says. fields: beside `kind` and those of ORIGIN.
        key: the fields that make two records the same measurement.
        needed: the fields that are never null, beside those of its origin. figures: nor these, where the status is ok.
    """

    what: str
    fields: Fields
    key: tuple[str, ...]
    needed: tuple[str, ...]
    figures: tuple[str, ...] = ()


SOFTWARE = ("device", "jax", "sources")
TILE_KEY = (*CASE, *SOFTWARE)
STEP_KEY = ("device", "model", "dtype", "batch", "context")
CASE_NEEDS = ("op", "model", "rows", "dtype")
STEP_NEEDS = (*STEP, "status")
ORIGIN_NEEDS = (*SOFTWARE, "date")
MADE_WITH = ("status", "op", "model")
"""What a record has from the beginning: the rest of what it needs comes before it is kept."""
