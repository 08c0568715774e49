"""The tables of the engine under load."""

from collections.abc import Sequence
from typing import Any

from experiments.bench import record, tables
from experiments.bench.record import Record
from experiments.bench.tables import Table, number
from experiments.decode.table import with_extras

ENGINE = ("device", "model", "dtype", "implementation")
LOAD = (
    "model", "dtype", "input", "output", "concurrency", "tokens a step", "output tokens/s", "requests/s",
    "TTFT ms p50, p99", "ms between tokens p50, p99", "whole ms p50", "host ms a step", "wait ms a step", "pool used %",
    "preemptions",
)  # fmt: skip
LONG = (
    "model", "dtype", "long prompt", "others", "tokens a step", "ms between their tokens before, p50",
    "during its prefill, p99", "its TTFT ms", "TTFT ms of a short prompt meanwhile", "its tokens",
)  # fmt: skip
SHARED = (
    "model", "dtype", "prefix", "suffix", "tokens a step", "TTFT ms of the first", "of the second", "tokens found",
)  # fmt: skip


def newest(records: Sequence[Record], kind: str) -> list[Record]:
    """The newest record of each case of a kind, by case."""
    order = (*ENGINE, *(field for field in record.KINDS[kind].key if field not in ENGINE))
    return sorted(record.newest(records, kind), key=lambda one: tuple(one[field] for field in order))


def throughput_table(records: Sequence[Record]) -> Table:
    """Of closed loops, the newest of each case."""
    records = newest(records, "throughput")
    lines = [
        [
            one["model"], one["dtype"], one["input_tokens"], one["output_tokens"], one["concurrency"],
            _step(one), _told(one, "output_tokens_per_s", ".1f"), _told(one, "requests_per_s"),
            _both(one, "ttft_ms_p50", "ttft_ms_p99", ".1f"), _both(one, "itl_ms_p50", "itl_ms_p99", ".2f"),
            _told(one, "whole_ms_p50", ".1f"), _told(one, "host_ms_per_step"), _told(one, "wait_ms_per_step"),
            number(100 * one["pool_occupancy"] if one["status"] == "ok" else None, ".1f"),
            one["preemptions"] if one["status"] == "ok" else "-",
        ]
        for one in records
    ]  # fmt: skip
    return with_extras(LOAD, lines, records)


def long_prompt_table(records: Sequence[Record]) -> Table:
    records = newest(records, "long_prompt")
    lines = [
        [
            one["model"], one["dtype"], one["long_tokens"], one["background"], _step(one),
            _told(one, "itl_before_ms_p50"), _told(one, "itl_during_ms_p99"),
            _told(one, "long_ttft_ms", ".1f"), _told(one, "short_ttft_ms", ".1f"),
            one["short_tokens"],
        ]
        for one in records
    ]  # fmt: skip
    return with_extras(LONG, lines, records)


def shared_prefix_table(records: Sequence[Record]) -> Table:
    records = newest(records, "shared_prefix")
    lines = [
        [
            one["model"], one["dtype"], one["prefix_tokens"], one["suffix_tokens"], _step(one),
            _told(one, "first_ttft_ms"), _told(one, "second_ttft_ms"),
            one["prefix_hit_tokens"] // one["repeats"] if one["status"] == "ok" else "-",
        ]
        for one in records
    ]  # fmt: skip
    return with_extras(SHARED, lines, records)


TABLES = dict(throughput=throughput_table, long_prompt=long_prompt_table, shared_prefix=shared_prefix_table)
"""By kind of record."""


def text(records: Sequence[Record]) -> str:
    """The tables of the kinds that there are, one below the other."""
    kinds = {one["kind"] for one in records}
    return "\n\n".join(tables.text(*of(records)) for kind, of in TABLES.items() if kind in kinds)


def _step(one: Record) -> Any:
    """The most tokens that a step computes."""
    return one["max_batched_tokens"] or "default"


def _told(found: Record, field: str, form: str = ".2f"):
    """A figure that counts, or '-'."""
    return number(found[field] if found["status"] == "ok" else None, form)


def _both(found: Record, field: str, other: str, form: str) -> str:
    return f"{found[field]:{form}}, {found[other]:{form}}" if found["status"] == "ok" else "-"
