"""What a sweep found, as tables of plain text."""

import collections
import re
from collections.abc import Sequence
from typing import Any

from experiments.bench import select, tables
from experiments.bench.record import Record
from experiments.bench.tables import Number, number


def winners(records: Sequence[Record]) -> str:
    """Of each case the fastest tile, how the others compare, and XLA."""
    header = (
        "op", "model", "rows", "context", "us", "p10", "p90", "GB/s", "% ceiling", "XLA us", "vs XLA", "2nd us",
        "median us", "slowest us", "ok", "tried", "tile",
    )  # fmt: skip
    body = []
    measured = select.by_case([found for found in records if found["kind"] == "tile"])
    for (op, model, count, context, page_size, kv_dtype, _), members in measured.items():
        ok = select.timed(members)
        tried = len({str(found["tiles"]) for found in members})
        lead = [op, model, Number(count, ".0f"), tables.in_pages(number(context, ".0f"), page_size, kv_dtype)]
        if not ok:
            body.append([*lead, *["-"] * 10, Number(0, ".0f"), Number(tried, ".0f"), "none ran"])
            continue
        best, times = ok[0], [found["median_us"] for found in ok]
        xla = best["xla_us"]
        body.append([
            *lead, number(best["median_us"]), number(best["p10_us"]), number(best["p90_us"]),
            number(best["achieved_gbps"], ".0f"), number(best["percent_of_ceiling"], ".1f"), number(xla),
            number(xla and xla / best["median_us"], ".2f"), number(times[1] if len(times) > 1 else None),
            number(times[len(times) // 2]), number(times[-1]), Number(len(ok), ".0f"), Number(tried, ".0f"),
            tables.tiles_text(best["tiles"]),
        ])  # fmt: skip
    return tables.text(header, body)


def failures(records: Sequence[Record]) -> str:
    """How many tiles did not come out, by the beginning of the reason."""
    counts: dict[str, int] = {}
    for found in records:
        if found["kind"] == "tile" and found["status"] != "ok":
            numbers = r"(?<![\w.])[\d.]+(e-?\d+)?(?!\w)"  # those of the tile apart, two reasons are one
            kind = re.sub(numbers, "N", found["status"])[:100]
            counts[kind] = counts.get(kind, 0) + 1
    lines = [f"  {count:5d}  {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1])[:12]]
    return "\n".join(["Tiles without a time:", *lines]) if lines else ""


def without_gpu(records: Sequence[Record]) -> str:
    """A table a stage, each saying what its numbers are."""
    parts = [_feasible_table(records), _lowered(records), _checked(records), _xla_table(records)]
    return "\n" + "\n\n".join(part for part in parts if part) + "\n"


def _of(records: Sequence[Record], kind: str) -> list[Record]:
    return [found for found in records if found["kind"] == kind]


def _lead(found: Record) -> list[Any]:
    context = tables.in_pages(number(found["context"], ".0f"), found["page_size"], found["kv_dtype"])
    return [found["op"], found["model"], Number(found["rows"], ".0f"), context, found["dtype"]]


LEAD = ("op", "model", "rows", "context", "dtype")


def _feasible_table(records: Sequence[Record]) -> str:
    counted = _of(records, "feasible_tiles")
    if not counted:
        return ""
    devices = list(dict.fromkeys(key for found in counted for key in found["feasible"]))
    body, reasons = [], collections.Counter()
    for found in counted:
        counts = [found["feasible"].get(key) for key in devices]
        body.append([*_lead(found), *[f"{c['feasible']} of {c['of']}" if c else "-" for c in counts]])
        for key, count in found["feasible"].items():
            reasons.update({f"{key}: {reason}": number for reason, number in count["reasons"].items()})
    why = "; ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())) or "none is infeasible"
    title = "Tiles of the search space that each GPU can run, by the rules of `feasible` (nothing was run):"
    return f"{title}\n{tables.text((*LEAD, *devices), body)}\nWhy not, tiles in all: {why}"


def _lowered(records: Sequence[Record]) -> str:
    tried = _of(records, "lowered_tile")
    if not tried:
        return ""
    done = sum(found["status"].startswith("ok") for found in tried)
    return f"Lowered for CUDA, not run: {done} of a sample of {len(tried)} tiles.{_reasons(tried)}"


def _checked(records: Sequence[Record]) -> str:
    tried = _of(records, "interpreted_tile")
    if not tried:
        return ""
    header, body = (*LEAD, "right", "tried", "largest error", "XLA's error"), []
    for members in select.by_case(tried).values():
        right = [found for found in members if found["status"].startswith("ok")]
        errors = [[found[field] for found in right] for field in ("error", "error_xla")]
        body.append([
            *_lead(members[0]), Number(len(right), ".0f"), Number(len(members), ".0f"),
            *[number(max(values) if values else None, ".2g") for values in errors],
        ])  # fmt: skip
    title = "Tiles run in Pallas's interpreter against the float32 reference (right or wrong; not timed):"
    return f"{title}\n{tables.text(header, body)}{_reasons(tried)}"


def _reasons(records: Sequence[Record]) -> str:
    bad = [found for found in records if not found["status"].startswith("ok")]
    return "".join(
        f"\n  {found['op']} {found['model']} rows={found['rows']} "
        f"{tables.tiles_text(found['tiles'])}: {found['status']}"
        for found in bad[:10]
    ) + (f"\n  and {len(bad) - 10} more" if len(bad) > 10 else "")


def _xla_table(records: Sequence[Record]) -> str:
    timed = _of(records, "xla_on_cpu")
    if not timed:
        return ""
    body = []
    for found in timed:
        us, ceiling = (found[name] if found["status"].startswith("ok") else None for name in ("xla_us", "ceiling_gbps"))
        gbps = us and found["bytes"] / us / 1e3
        body.append([
            *_lead(found), number(us, ".0f"), number(gbps), number(ceiling),
            number(gbps and 100 * gbps / ceiling, ".1f"),
        ])  # fmt: skip
    header = (*LEAD, "XLA us", "XLA GB/s", "read ceiling GB/s", "% of it")
    title = "XLA's implementation on this processor, against its own read ceiling (no Pallas kernel is in this table):"
    return f"{title}\n{tables.text(header, body)}"
