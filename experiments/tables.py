"""Plain-text and Markdown tables of results."""

import re
from collections.abc import Sequence
from typing import Any

from experiments.row_log import Row

CASE_FIELDS = ("op", "model", "rows", "context", "dtype")


def text(header: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    """Columns aligned with spaces, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in [header, *body]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [all(not isinstance(row[i], str) or row[i] in ("", "-") for row in body) for i in range(len(header))]
    lines = [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(header: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in lines)


class Number(float):
    """A number with its printed form."""

    def __new__(cls, value: float, form: str):
        self = super().__new__(cls, value)
        self.form = form
        return self

    def __str__(self) -> str:
        return format(float(self), self.form)


def number(value: float | None, form: str = ".2f") -> Any:
    return "-" if value is None else Number(value, form)


def tiles_text(tiles: dict[str, Any] | None) -> str:
    """'block_n=2 block_k=1024 num_warps=4', flags by name alone, and nothing of what is not used."""
    if tiles is None:
        return "-"
    parts = [name if value is True else f"{name}={value}" for name, value in tiles.items() if value]
    return " ".join(parts)


def newest(rows: Sequence[Row], op: str, keys: Sequence[str]) -> dict[tuple, Row]:
    """The rows of the op by those fields; of several alike the one of the last date."""
    mine = sorted((row for row in rows if row["op"] == op), key=lambda row: row.get("date") or "")
    return {tuple(row[key] for key in keys): row for row in mine}


def by_case(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """Rows by case, in the order in which the cases first appear."""
    cases: dict[tuple, list[Row]] = {}
    for row in rows:
        cases.setdefault(tuple(row.get(field) for field in CASE_FIELDS), []).append(row)
    return cases


def timed(rows: Sequence[Row]) -> list[Row]:
    """The rows of kernels that ran right on a GPU, fastest first; of one tile measured again the last."""
    last = {str(row["tiles"]): row for row in rows if row.get("mode") == "gpu"}
    kept = [row for row in last.values() if row["status"] == "ok" and row.get("median_us") is not None]
    return sorted(kept, key=lambda row: row["median_us"])


def winners(rows: Sequence[Row]) -> str:
    """Of each case the fastest tile, how the others compare, and XLA."""
    header = (
        "op", "model", "rows", "context", "us", "p10", "p90", "GB/s", "% ceiling", "XLA us", "vs XLA", "2nd us",
        "median us", "slowest us", "ok", "tried", "tile",
    )  # fmt: skip
    body = []
    for (op, model, count, context, _), members in by_case([row for row in rows if row.get("mode") == "gpu"]).items():
        ok = timed(members)
        tried = len({str(row["tiles"]) for row in members})
        lead = [op, model, Number(count, ".0f"), number(context, ".0f")]
        if not ok:
            body.append([*lead, *["-"] * 10, Number(0, ".0f"), Number(tried, ".0f"), "none ran"])
            continue
        best, times = ok[0], [row["median_us"] for row in ok]
        xla = best["xla_us"]
        body.append([
            *lead, number(best["median_us"]), number(best["p10_us"]), number(best["p90_us"]),
            number(best["achieved_gbps"], ".0f"), number(best["percent_of_ceiling"], ".1f"), number(xla),
            number(xla and xla / best["median_us"], ".2f"), number(times[1] if len(times) > 1 else None),
            number(times[len(times) // 2]), number(times[-1]), Number(len(ok), ".0f"), Number(tried, ".0f"),
            tiles_text(best["tiles"]),
        ])  # fmt: skip
    return text(header, body)


def failures(rows: Sequence[Row]) -> str:
    """How many tiles did not come out, by the beginning of the reason."""
    counts: dict[str, int] = {}
    for row in rows:
        if row.get("mode") == "gpu" and row["status"] != "ok":
            numbers = r"(?<![\w.])[\d.]+(e-?\d+)?(?!\w)"  # those of the tile apart, two reasons are one
            kind = re.sub(numbers, "N", row["status"])[:100]
            counts[kind] = counts.get(kind, 0) + 1
    lines = [f"  {count:5d}  {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1])[:12]]
    return "\n".join(["Tiles without a time:", *lines]) if lines else ""
