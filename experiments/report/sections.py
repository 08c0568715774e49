"""The sections of RESULTS.md, each a table of one kind of record, what it says and the command that makes it."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from experiments.ablation.table import ablation_table, name_of
from experiments.ablation.table import newest as newest_ablations
from experiments.bench import record, select, tables
from experiments.bench.record import Record
from experiments.bench.tables import Table, number
from experiments.decode import table as decode
from experiments.prefill import table as prefill
from experiments.report.origin import origin
from experiments.serve_bench import table as serve
from experiments.throughput import table as throughput

WIDTH = 118
"""Of a line of prose."""
Section = tuple[str, str, Table, Sequence[Record], str]
"""Title, what it says, the table, the records in it, the command."""


def decode_section(records: Sequence[Record]) -> Section:
    found = decode.newest(records)
    return (
        "Decode",
        "The whole greedy step, chained on the device while the cache grows; the floor is its bytes at the ceiling.",
        decode.decode_table(found),
        found,
        "python -m experiments.decode --config=decode.py --batches=1,2,4,8,16 --contexts=128,1024,8192,32768",
    )


def peers_section(records: Sequence[Record]) -> Section:
    found = sorted(record.newest(records, "peer"), key=lambda one: (one["model"], one["engine"], one["batch"]))
    header = ("engine", "model", "batch", "context", "ms a token (least to most)", "how", "version", "date")
    body = [
        [
            one["engine"], one["model"], one["batch"], one["context"],
            tables.spread(one["ms_per_token"], one["ms_min"], one["ms_max"]), one["how"], one["engine_version"],
            one["date"][:10],
        ]
        for one in found
    ]  # fmt: skip
    what = "Other engines on the same card, each in its own loop; every run is a line, since they move from day to day."
    return "Other engines", what, (header, body), found, "python -m experiments.peers --engine=vllm --batches=1,8"


def generate_section(records: Sequence[Record]) -> Section:
    found = record.newest(records, "generate")
    header = ("model", "prompt tokens", "TTFT ms", "decode tokens/s", "% of ceiling")
    body = [
        [
            one["model"], one["context"], number(one["ttft_ms"], ".1f"), number(one["tokens_per_s"], ".1f"),
            number(one["percent_of_ceiling"], ".1f"),
        ]
        for one in found
    ]  # fmt: skip
    what = "What `python -m tokenspeed generate` prints of itself at batch 1, prefill included."
    lines = decode.with_extras(header, body, found)
    return "The command line", what, lines, found, "python -m experiments.generate --prompts=128,1024"


def prefill_section(records: Sequence[Record]) -> Section:
    found = prefill.newest(records)
    what = (
        "Prompts (start 0) from the call of `LLM.generate` to its return with one token of each, and chunks of a long "
        "prompt behind a cache, the device's time, with their products, attention and gathers alone. The floor is the "
        "bytes at the ceiling, or the operations at the datasheet's peak where that is longer."
    )
    return (
        "Prefill", what, prefill.prefill_table(found), found,
        "python -m experiments.prefill --config=prefill.py  # or --batches=8 --prompts=1024, or --starts=30000",
    )  # fmt: skip


def engine_section(records: Sequence[Record]) -> Section:
    found = throughput.newest(records, "throughput")
    what = (
        "Requests to one engine in the same process, so many under way at a time and a new one for each that ends, "
        "different random prompts. Its host's time of a step is that in which it does not wait for the device's "
        "tokens; a step is one token of each request in decode, or a few where nobody waits."
    )
    command = "python -m experiments.throughput --config=throughput.py"
    return "Engine", what, throughput.throughput_table(found), found, command


def peers_load_section(records: Sequence[Record]) -> Section:
    found = sorted(record.newest(records, "peer_load"), key=lambda one: (one["model"], one["engine"], *_load(one)))
    header = (
        "engine", "model", "input", "output", "concurrency", "output tokens/s", "ours", "TTFT ms p50, p99",
        "ms between tokens p50, p99", "version", "date",
    )  # fmt: skip
    chosen = [one for one in throughput.newest(records, "throughput") if not one["max_batched_tokens"]]
    ours = {(one["model"], *_load(one)): one for one in chosen}
    body = []
    for one in found:
        own = ours.get((one["model"], *_load(one)))
        body.append([
            one["engine"], one["model"], one["input_tokens"], one["output_tokens"], one["concurrency"],
            number(one["output_tokens_per_s"], ".1f"),
            number(own["output_tokens_per_s"] if own and own["status"] == "ok" else None, ".1f"),
            f"{number(one['ttft_ms_p50'], '.1f')}, {number(one['ttft_ms_p99'], '.1f')}",
            f"{number(one['itl_ms_p50'])}, {number(one['itl_ms_p99'])}",
            one["engine_version"], one["date"][:10],
        ])  # fmt: skip
    what = "The same load on other engines with their servers' limits, on the same card; ours with default options."
    command = "python -m experiments.peers --engine=vllm --concurrency=1,8,32,64,256"
    return "Other engines under load", what, (header, body), found, command


def _load(one: Record) -> tuple[int, int, int]:
    return one["input_tokens"], one["output_tokens"], one["concurrency"]


def long_prompt_section(records: Sequence[Record]) -> Section:
    found = throughput.newest(records, "long_prompt")
    what = "A long prompt that arrives while others decode, and a short one once half of it is under way."
    command = "python -m experiments.throughput --config=throughput.py --long_prompts=30000"
    return "Engine: a long prompt", what, throughput.long_prompt_table(found), found, command


def shared_prefix_section(records: Sequence[Record]) -> Section:
    found = throughput.newest(records, "shared_prefix")
    what = "Two requests that begin alike, one after the other: the second finds whole pages of the first."
    command = "python -m experiments.throughput --config=throughput.py --shared_prefixes=2048"
    return "Engine: a shared prefix", what, throughput.shared_prefix_table(found), found, command


def serve_section(records: Sequence[Record]) -> Section:
    found = [one for group in serve.groups_of(records) for one in group.runs]
    what = (
        "Servers under load over HTTP, by the same client on their host, their runs in turn. Times are from when a "
        "request was due. TPOT is the mean of a request's tokens after those that came first; events that come "
        "together have no time between them. Goodput: requests that met the objective. With long prompts the figures "
        "are those of the chats. Medians of the runs that count."
    )
    command = "python -m experiments.serve_bench --config=serve.py --endpoints=ours=URL,vllm=URL --mixes=both"
    return "Servers under load", what, serve.serve_table(found), found, command


def layer_section(records: Sequence[Record]) -> Section:
    found = sorted(record.newest(records, "layer"), key=lambda one: (one["model"], one["batch"], one["median_us"]))
    header = (
        "model", "batch", "by", "prefetch KiB", "us a layer (p10 to p90)", "% of ceiling", "launches",
        "us beyond bytes, a launch",
    )  # fmt: skip
    body = [
        [
            one["model"], one["batch"], one["implementation"], (one["prefetch_bytes"] or 0) // 1024 or "",
            tables.spread(one["median_us"], one["p10_us"], one["p90_us"]), number(one["percent_of_ceiling"], ".1f"),
            one["launches"] or "", number(one["beyond_bytes_us_per_launch"]),
        ]
        for one in found
    ]  # fmt: skip
    what = "The decode step without its head, by its layers, at context 1024: launches, ramps and gaps included."
    return "Layers", what, decode.with_pages(header, body, found), found, "python -m experiments.layer"


def tiles_section(records: Sequence[Record]) -> Section:
    """The fastest tile of each case."""
    winners, tried = [], 0
    for members in select.by_case([found for found in records if found["kind"] == "tile"]).values():
        members = select.fullest(members)
        tried += len({str(found["tiles"]) for found in members})
        winners += select.timed(members)[:1]
    winners.sort(key=lambda one: (one["rows"], one["model"]))
    header = ("op", "model", "rows", "context", "us (p10 to p90)", "% of ceiling", "XLA us", "error (XLA's)", "tile")
    body = [
        [
            one["op"], one["model"], one["rows"],
            tables.in_pages(one["context"] or "", one["page_size"], one["kv_dtype"]),
            tables.spread(one["median_us"], one["p10_us"], one["p90_us"]), number(one["percent_of_ceiling"], ".1f"),
            number(one["xla_us"]), f"{one['error']:.1e} ({one['error_xla']:.1e})", tables.tiles_text(one["tiles"]),
        ]
        for one in winners
    ]  # fmt: skip
    what = (
        "Each op as the decode step calls it, alone: cold, dependent calls chained on the device. The fastest tile of "
        f"each case; {tried} were tried. XLA's time is that of the call that XLA's step makes. Errors are relative "
        "RMS, against float32."
    )
    return "Ops", what, (header, body), winners, "python -m experiments.sweep --config=tiles.py"


def ablation_section(records: Sequence[Record]) -> Section:
    what = (
        "The step as it ships, and with one thing left out at a time, in turn in one run. *gives*: by how much the "
        "step is slower without it (what was tried and is not in it: faster with it). The control is the same step, "
        "compiled again: less than that is nothing. *predicted*: by the arithmetic of "
        "experiments/ablation/ablations.py."
    )
    return (
        "Ablation", what, ablation_table(records), newest_ablations(records), "python -m experiments.ablation"
    )  # fmt: skip


def drift_section(records: Sequence[Record]) -> Section:
    found = [one for one in newest_ablations(records) if one["drift"] is not None]
    counted = _counted(records)
    header = (
        "model", "batch", "left out", "drift", "KL", "largest", "tokens as shipped", "launches more", "MB predicted",
        "MB measured",
    )  # fmt: skip
    body = [
        [
            one["model"], one["batch"], name_of(one), number(one["drift"], ".2e"), number(one["drift_kl"], ".1e"),
            number(one["drift_max"], ".2e"), f"{one['tokens_as_shipped']} of {one['tokens_checked']}",
            one["predicted_launches"] or "", _mb(one["predicted_bytes"]), _mb(counted.get(_step_key(one))),
        ]
        for one in found
    ]  # fmt: skip
    what = (
        "The logits of those steps against the same step in float64: RMS over RMS, mean divergence, largest "
        "difference; and what each step moves more than the shipped one, predicted, and by the GPU's counters where "
        "they were asked."
    )
    return "Ablation: numerics and bytes", what, (header, body), found, "python -m experiments.ablation.counters"


def counters_section(records: Sequence[Record]) -> Section:
    steps: dict[tuple, list[Record]] = {}
    for found in _newest_counters(records):
        steps.setdefault(_step_key(found), []).append(found)
    header = ("model", "left out", "MB needed", "MB read", "% of it", "MB written")
    body = [
        [
            one[0]["model"], one[0]["ablation"] or "nothing: as shipped", number(one[0]["step_bytes"] / 1e6, ".1f"),
            number(one[0]["step_read_bytes"] / 1e6, ".1f"),
            number(100 * one[0]["step_read_bytes"] / one[0]["step_bytes"], ".1f"),
            number(sum(found["written_bytes"] for found in one) / 1e6, ".1f"),
        ]
        for one in steps.values()
    ]  # fmt: skip
    what = "Bytes of a step by the GPU's own counters, against those that it must read: weights once, keys and values."
    members = [found for one in steps.values() for found in one]
    return "Counters", what, (header, body), members, "python -m experiments.ablation.counters"


def layouts_section(records: Sequence[Record]) -> Section:
    cache = [found for found in records if found["kind"] == "cache_layout"]
    weights = [found for found in records if found["kind"] == "weight_layout"]
    header = ("what", "model", "op or context", "page", "order", "us (p10 to p90)")
    body = [
        [
            "cache" if one["kind"] == "cache_layout" else "weight", one["model"],
            one["context"] if one["kind"] == "cache_layout" else one["op"],
            one.get("page_size") or "", one["layout"], tables.spread(one["median_us"], one["p10_us"], one["p90_us"]),
        ]
        for one in (*cache, *weights)
    ]  # fmt: skip
    what = (
        "Kernels that only read: keys and values by the order of the cache's axes, weights by the order of their bytes."
    )
    return "Layouts", what, (header, body), [*cache, *weights], "python -m experiments.layouts.cache  # or .weights"


Sections = tuple[Callable[[Sequence[Record]], Section], ...]
SECTIONS: Sections = (
    decode_section, peers_section, generate_section, prefill_section, engine_section, peers_load_section,
    long_prompt_section, shared_prefix_section, serve_section, layer_section, tiles_section, ablation_section,
    drift_section, counters_section, layouts_section,
)  # fmt: skip
"""Of one device."""


def rendered(records: Sequence[Record], sections: Sections = SECTIONS) -> list[str]:
    """The sections that have records, in Markdown."""
    parts = []
    for section in sections:
        title, what, table, members, command = section(records)
        if members:
            parts += [f"### {title}", textwrap.fill(what, WIDTH), tables.markdown(*table), origin(members, command)]
    return parts


def _mb(value: float | None) -> Any:
    return number(value / 1e6) if value else ""


def _step_key(found: Record) -> tuple:
    return tuple(found[field] for field in ("model", "dtype", "batch", "context", "ablation"))


def _newest_counters(records: Sequence[Record]) -> list[Record]:
    """Those of each step's last run, all of one date: its kernels may be others than before."""
    found = [one for one in records if one["kind"] == "counters"]
    last: dict[tuple, str] = {}
    for one in found:
        last[_step_key(one)] = max(one["date"], last.get(_step_key(one), ""))
    return [one for one in found if one["date"] == last[_step_key(one)]]


def _counted(records: Sequence[Record]) -> dict[tuple, float]:
    """Of each ablation's step the bytes that it reads and writes more than the shipped step."""
    moved: dict[tuple, float] = {}
    for one in _newest_counters(records):
        moved[_step_key(one)] = moved.get(_step_key(one), 0) + one["read_bytes"] + one["written_bytes"]
    shipped = {step: moved.get((*step[:-1], "")) for step in moved}
    return {step: moved[step] - base for step, base in shipped.items() if step[-1] and base is not None}
