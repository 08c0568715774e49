"""The schema of a result: what a record may hold, by kind, and what makes two records the same measurement.

A record is one JSON object on a line of a results file. This is the only place where its fields are named: `new` makes
one, `check` judges one that was read, `key` says which measurement it is.
"""

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any

from experiments.bench.errors import ResultsError

Record = dict[str, Any]

TEXT, NUMBER, COUNT, FLAG, TABLE, LIST = (str,), (int, float), (int,), (bool,), (dict,), (list,)

ORIGIN = dict(
    device=(TEXT, "jax's name of the device; of a processor followed by what it calls itself"),
    driver=(TEXT, "version of the GPU's driver"),
    clocks=(TABLE, "MHz of multiprocessors and memory when the run began, and the most they can have"),
    jax=(TEXT, "its version"),
    sources=(TEXT, "digest over the sources of all of this project that the record's measurement ran"),
    commit=(TEXT, "of this repository"),
    dirty=(FLAG, "whether tracked files differed from it"),
    command=(TEXT, "that made the record"),
    date=(TEXT, "when the record was made, UTC"),
)
CASE = dict(
    op=(TEXT, "the function of pallas_kernels"),
    model=(TEXT, "a name of configs/models"),
    rows=(COUNT, "activation rows of a call"),
    context=(COUNT, "positions of the KV cache; null where it has no part in the case"),
    dtype=(TEXT, "bf16, f16 or f32, of weights, activations and cache"),
    tiles=(TABLE, "as the op's dataclass of tiles"),
)
STATUS = dict(status=(TEXT, "'ok', or in words why there is no figure, or why it does not count"))
ERRORS = dict(
    error=(NUMBER, "relative RMS error of the kernel, against the reference on float32 operands"),
    error_xla=(NUMBER, "that of XLA on the operands as they are"),
)
CALL_US = dict(
    median_us=(NUMBER, "of one call"),
    p10_us=(NUMBER, "10th percentile over the samples"),
    p90_us=(NUMBER, "90th percentile"),
    samples=(COUNT, "how many"),
)
RATE = dict(
    bytes=(NUMBER, "that must move, each once"),
    achieved_gbps=(NUMBER, "bytes by the time"),
    ceiling_gbps=(NUMBER, "read ceiling of the device, measured in the same run"),
    percent_of_ceiling=(NUMBER, "achieved_gbps of ceiling_gbps"),
)
STEP = dict(
    model=(TEXT, "a name of configs/models, or of the folder of a config.json"),
    dtype=(TEXT, "bf16, f16 or f32, of weights, activations and cache"),
    batch=(COUNT, "sequences at a time"),
    context=(COUNT, "positions in the cache before the first step"),
    implementation=(TEXT, "of the kernels"),
)
STEP_MS = dict(
    ms_per_token=(NUMBER, "median of one step, in which each sequence gets a token"),
    ms_p5=(NUMBER, "5th percentile over the samples, which are means over the steps of a call"),
    ms_p95=(NUMBER, "95th percentile"),
    samples=(COUNT, "how many calls"),
    steps=(COUNT, "of a call"),
    tokens_checked=(COUNT, "drawn by different sequences, each the same in every run"),
)


NEVER_NULL = ("status", "op", "model")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of record.

    Attributes:
        what: it says. fields: name -> (types, meaning), beside `kind` and those of ORIGIN.
        key: the fields that make two records the same measurement.
    """

    what: str
    fields: dict[str, tuple[tuple[type, ...], str]]
    key: tuple[str, ...]


_SOFTWARE = ("device", "jax", "sources")
_TILE_KEY = (*CASE, *_SOFTWARE)
_STEP_KEY = ("device", "model", "dtype", "batch", "context")

KINDS = {
    "tile": Kind(
        "a tile of an op, checked and timed on a GPU",
        CASE | STATUS | ERRORS | CALL_US | RATE
        | dict(
            calls=(COUNT, "calls of a sample's chain"),
            xla_us=(NUMBER, "what XLA's step takes for the same"),
            compile_s=(NUMBER, "seconds to compile a single call"),
        ),
        _TILE_KEY,
    ),
    "tile_in_layer": Kind(
        "a tile of an op among the other launches of a decoder layer",
        CASE | STATUS
        | dict(
            layer_us=(NUMBER, "median of a layer"),
            layer_p10_us=(NUMBER, "10th percentile"),
            layer_p90_us=(NUMBER, "90th percentile"),
            samples=(COUNT, "how many"),
            incumbent=(FLAG, "whether it is what the kernel would use by itself"),
            chosen=(FLAG, "whether it was the best by more than the noise"),
            layer_tiles=(TABLE, "of the other ops, by op"),
            layer_context=(COUNT, "positions in the cache"),
            prefetch_bytes=(COUNT, "of the next weight that each kernel asks for early"),
            ceiling_gbps=RATE["ceiling_gbps"],
        ),
        _TILE_KEY,
    ),
    "interpreted_tile": Kind(
        "a tile run by Pallas's interpreter against the reference: right or wrong, no time",
        CASE | STATUS | ERRORS,
        _TILE_KEY,
    ),
    "lowered_tile": Kind(
        "a tile lowered for CUDA and not run",
        CASE | STATUS
        | dict(
            feasible=(TABLE, "device -> why it cannot run the tile, '' where it can"),
            compile_s=(NUMBER, "seconds to lower it"),
        ),
        _TILE_KEY,
    ),
    "feasible_tiles": Kind(
        "how many tiles of a search space each GPU can run; nothing was run",
        CASE | STATUS | dict(feasible=(TABLE, "device -> feasible, of, reasons")),
        _TILE_KEY,
    ),
    "xla_on_cpu": Kind(
        "XLA's implementation of an op on this processor",
        CASE | STATUS
        | dict(
            xla_us=(NUMBER, "median of one call"),
            samples=CALL_US["samples"],
            calls=(COUNT, "calls of a sample's chain"),
            bytes=RATE["bytes"],
            ceiling_gbps=RATE["ceiling_gbps"],
        ),
        _TILE_KEY,
    ),
    "layer": Kind(
        "the launches of a decoder layer, chained over all layers of a model",
        STEP | STATUS | CALL_US | RATE
        | dict(
            prefetch_bytes=(COUNT, "of the next weight that each kernel asks for early"),
            tiles=(TABLE, "by op"),
            launches=(COUNT, "of a layer"),
            beyond_bytes_us_per_launch=(NUMBER, "time less that of the bytes at the ceiling, by the launches"),
            difference_from_xla=(NUMBER, "RMS of the difference of the results, over their RMS"),
        ),
        ("device", "model", "dtype", "batch", "context", "implementation", "prefetch_bytes"),
    ),
    "decode": Kind(
        "a whole greedy decode step, chained on the device",
        STEP | STATUS | STEP_MS | RATE
        | dict(
            xla_ms_per_token=(NUMBER, "XLA's, of the same run, where that counts"),
            tokens_per_s=(NUMBER, "of all sequences together"),
            percent_of_datasheet=(NUMBER, "achieved_gbps of the datasheet's bandwidth"),
            floor_ms=(NUMBER, "bytes at ceiling_gbps"),
            compilations=(COUNT, "how often each program was compiled"),
            ms_by_compilation=(LIST, "the median of each"),
            tokens_agree_with_xla=(COUNT, "of tokens_checked, those that XLA draws too"),
        ),
        (*_STEP_KEY, "implementation"),
    ),
    "generate": Kind(
        "what `python -m tokenspeed generate` prints of itself, prefill included",
        STEP | STATUS
        | dict(
            ttft_ms=(NUMBER, "from the call to the first token"),
            tokens_per_s=(NUMBER, "of decode, a sequence, after its first token"),
            output_tokens=(COUNT, "drawn"),
            tokens_checked=(COUNT, "drawn, the same in two runs"),
            generate_command=(TEXT, "the command whose figures these are"),
        )
        | RATE,
        (*_STEP_KEY, "implementation"),
    ),
    "peer": Kind(
        "a decode step of another engine, by its own loop",
        STEP | STATUS
        | dict(
            engine=(TEXT, "vllm or torch"),
            engine_version=(TEXT, "of it, and of the torch below it"),
            how=(TEXT, "how it was run: compilation, graphs, attention"),
            ms_per_token=(NUMBER, "median over the repeats"),
            ms_min=(NUMBER, "the least"),
            ms_max=(NUMBER, "the most"),
            samples=(COUNT, "repeats"),
            steps=(COUNT, "tokens that a repeat's time is the mean of"),
            tokens_per_s=(NUMBER, "of all sequences together"),
        ),
        (*_STEP_KEY, "engine", "date"),
    ),
    "ablation": Kind(
        "a decode step without one of the things that make it fast",
        STEP | STATUS | STEP_MS
        | dict(
            ablation=(TEXT, "what was left out; '' is the step as it ships"),
            strategy=(TEXT, "what kind of thing that is"),
            without=(TEXT, "what takes its place"),
            tried=(FLAG, "not in the shipped step: what is timed is the step with it"),
            base_ms=(NUMBER, "the step as it ships, in this run"),
            gain_us=(NUMBER, "what it gives the step"),
            predicted_us=(NUMBER, "by arithmetic, before"),
            predicted_bytes=(NUMBER, "bytes more without it"),
            predicted_launches=(COUNT, "launches more without it"),
            drift=(NUMBER, "RMS of logits less those in float64, over the RMS of those"),
            drift_max=(NUMBER, "the largest difference"),
            drift_kl=(NUMBER, "mean Kullback-Leibler divergence"),
            tokens_as_shipped=(COUNT, "of tokens_checked, those that the shipped step draws too"),
            floor_ms=(NUMBER, "bytes of the step at ceiling_gbps"),
            ceiling_gbps=RATE["ceiling_gbps"],
        ),
        (*_STEP_KEY, "ablation"),
    ),
    "counters": Kind(
        "what the kernels of one name move in a decode step, by the GPU's counters",
        STEP | STATUS
        | dict(
            ablation=(TEXT, "what was left out; '' is the step as it ships"),
            kernel=(TEXT, "name"),
            calls=(COUNT, "in a step"),
            read_bytes=(NUMBER, "from memory, all calls together"),
            written_bytes=(NUMBER, "to memory"),
            alone_us=(NUMBER, "of all calls, each alone under the profiler"),
            step_bytes=(NUMBER, "that the whole step must read"),
            step_read_bytes=(NUMBER, "that it did read"),
        ),
        (*_STEP_KEY, "implementation", "ablation", "kernel"),
    ),
    "cache_layout": Kind(
        "reading keys and values in one order of the cache's axes",
        dict(model=CASE["model"], context=CASE["context"], page_size=(COUNT, "positions"), layout=(TEXT, "of axes"))
        | STATUS | CALL_US | dict(bytes=RATE["bytes"], achieved_gbps=RATE["achieved_gbps"]),
        ("device", "model", "context", "page_size", "layout"),
    ),
    "weight_layout": Kind(
        "reading a weight in one order of its bytes",
        dict(model=CASE["model"], op=CASE["op"], layout=(TEXT, "of the bytes"), tiles=CASE["tiles"])
        | STATUS | CALL_US | dict(bytes=RATE["bytes"], achieved_gbps=RATE["achieved_gbps"]),
        ("device", "model", "op", "layout"),
    ),
}  # fmt: skip


def new(kind: str, **values: Any) -> Record:
    """A record of that kind; fields that are not given are null. A field that the kind lacks is a programming error."""
    fields = _fields(kind)
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise KeyError(f"{kind}: no fields {', '.join(unknown)}")
    record = dict(kind=kind) | {name: values.get(name) for name in fields}
    problem = _problem(record)
    if problem:
        raise TypeError(problem)
    return record


def check(record: Any, where: str) -> Record:
    """The record, if it is one; else a ResultsError that says at `where` which field is wrong."""
    if not isinstance(record, dict):
        raise ResultsError(f"{where}: expected a record, got {json.dumps(record)[:40]}")
    problem = _problem(record)
    if problem:
        raise ResultsError(f"{where}: {problem}")
    return record


def key(record: Record) -> str:
    """Which measurement it is."""
    return json.dumps([record["kind"], *(record[name] for name in KINDS[record["kind"]].key)], sort_keys=True)


def newest(records: Iterable[Record], kind: str) -> list[Record]:
    """The records of a kind by date; of those of one measurement only the last."""
    last: dict[str, Record] = {}
    for record in sorted((r for r in records if r["kind"] == kind), key=lambda r: r["date"] or ""):
        last[key(record)] = record
    return list(last.values())


def rounded(value: float | None, digits: int = 4) -> float | None:
    """To the digits that a record keeps."""
    return None if value is None else round(value, digits)


def finite(value: float) -> float | None:
    """None for infinity and NaN, of which JSON knows nothing."""
    return value if math.isfinite(value) else None


def _fields(kind: str) -> dict[str, tuple[tuple[type, ...], str]]:
    return KINDS[kind].fields | ORIGIN


def _problem(record: Record) -> str:
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        return f"kind: expected one of {', '.join(KINDS)}, got {json.dumps(kind)[:40]}"
    fields = _fields(kind)
    for name in fields:
        if name not in record:
            return f"{name}: missing in a record of kind {kind}"
    for name, value in record.items():
        if name == "kind":
            continue
        if name not in fields:
            return f"{name}: not a field of kind {kind}"
        types = fields[name][0]
        if value is None:
            if name in NEVER_NULL:
                return f"{name}: expected text, got null"
        elif not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join(one.__name__ for one in types)
            return f"{name}: expected {wanted}, got {json.dumps(value)[:40]}"
    return ""
