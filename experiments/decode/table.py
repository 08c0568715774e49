"""The table of decode."""

from collections.abc import Sequence
from typing import Any

from experiments.bench import record, tables
from experiments.bench.record import Record
from experiments.bench.tables import Table, number
from experiments.bench.unquantised import with_ratio
from tokenspeed.models.kv_dtypes import AUTO

CASE = ("device", "model", "dtype", "batch", "context", "page_size", "kv_dtype")
HEADER = (
    "model", "dtype", "batch", "context", "floor ms", "ms/token (p5 to p95)", "tokens/s", "% of ceiling", "XLA ms",
    "times XLA",
)  # fmt: skip


def newest(records: Sequence[Record]) -> list[Record]:
    """The newest record of each case and implementation, by case."""
    return sorted(record.newest(records, "decode"), key=lambda one: (*case_of(one), one["implementation"]))


def case_of(found: Record) -> tuple:
    return tuple(found[field] for field in CASE)


def decode_table(records: Sequence[Record]) -> Table:
    """The newest of each case and implementation.

    XLA has a line of its own only where nothing else has a time: beside another it is a column.
    """
    records = newest(records)
    beside = {case_of(one) for one in records if one["implementation"] != "xla" and one["status"] == "ok"}
    shown = [one for one in records if one["implementation"] != "xla" or case_of(one) not in beside]
    lines = [_line(one, records) for one in shown]
    table = with_ratio(HEADER, lines, shown, records, (*CASE, "implementation"), "ms_per_token")
    return with_extras(*with_pages(*table, shown), shown)


def xla_beside(found: Record, records: Sequence[Record]) -> Record | None:
    """The record that has XLA's time of a case: `found` itself, else XLA's own newest, of another run."""
    if found["xla_ms_per_token"] is not None:
        return found
    alone = [one for one in newest(records) if one["implementation"] == "xla" and one["status"] == "ok"]
    return next((one for one in alone if case_of(one) == case_of(found)), None)


def _line(found: Record, records: Sequence[Record]) -> list[Any]:
    ok = found["status"] == "ok"
    ms, rate, percent = (
        found[field] if ok else None for field in ("ms_per_token", "tokens_per_s", "percent_of_ceiling")
    )
    beside = xla_beside(found, records) if ok else None
    xla = beside["xla_ms_per_token"] if beside else None
    return [
        found["model"], found["dtype"], found["batch"], found["context"], number(found["floor_ms"], ".3f"),
        tables.spread(ms, found["ms_p5"], found["ms_p95"], ".3f"), number(rate, ".1f"), number(percent, ".1f"),
        number(xla, ".3f"), number(xla and ms and xla / ms),
    ]  # fmt: skip


def with_pages(header: Sequence[str], lines: list[list[Any]], records: Sequence[Record]) -> Table:
    """The table, with columns of page sizes where a cache is paged, and of what one is stored in where that differs."""
    if any(one["page_size"] for one in records):
        header, lines = (*header, "page size"), [[*line, one["page_size"] or "-"] for line, one in zip(lines, records)]
    if any(one.get("kv_dtype", AUTO) != AUTO for one in records):
        header, lines = (*header, "KV"), [[*line, one["kv_dtype"]] for line, one in zip(lines, records)]
    return header, lines


def with_extras(header: Sequence[str], lines: list[list[Any]], records: Sequence[Record]) -> Table:
    """The table, with columns for what its lines do not have in common: the implementation, and what is not 'ok'."""
    if any(one["implementation"] != "triton" for one in records):
        header, lines = (*header, "by"), [[*line, one["implementation"]] for line, one in zip(lines, records)]
    if any(one["status"] != "ok" for one in records):
        header, lines = (*header, "status"), [[*line, one["status"]] for line, one in zip(lines, records)]
    return header, lines
