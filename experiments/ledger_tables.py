"""The tables of the ledger, and of the counters."""

from collections.abc import Sequence
from typing import Any

from experiments import tables
from experiments.levers import LEVERS, SHIPPED
from experiments.row_log import Row
from experiments.tables import number

HEADER = (
    "model", "batch", "strategy", "lever", "without it", "ms/token (p5 to p95)", "gives µs", "the run before",
    "predicted µs", "launches", "MB predicted", "MB measured", "drift", "KL", "largest", "tokens as shipped", "status",
)  # fmt: skip
COUNTERS_HEADER = (
    "model", "implementation", "without", "context", "MB needed", "MB read", "% of it", "MB written",
    "by kernel, MB read",
)  # fmt: skip
COUNTERS_KEYS = ("device", "model", "dtype", "batch", "context", "implementation", "lever")
NAMED = 6
"""Kernels whose bytes are told one by one."""
KEYS = ("device", "model", "dtype", "batch", "context", "lever")


def newest(rows: Sequence[Row]) -> list[Row]:
    """Of the ledger's rows those of each case's last run, in the order of that run."""
    return list(tables.newest(rows, "ledger", KEYS).values())


def before(rows: Sequence[Row]) -> dict[tuple, Row]:
    """Of each case the row of the run before its last."""
    last = {_case(row): row["date"] for row in newest(rows)}
    return tables.newest(
        [row for row in rows if row["op"] == "ledger" and row["date"] < last[_case(row)]], "ledger", KEYS
    )


def ledger(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[list[Any]]]:
    """Header and lines: a model's batches one after the other, of each the shipped step first."""
    earlier, more = before(rows), _moved_more(newest_counters(rows))
    rows = newest(rows)
    models = list(dict.fromkeys(row["model"] for row in rows))
    rows = sorted(rows, key=lambda row: (models.index(row["model"]), row["batch"], bool(row["lever"])))
    return HEADER, [_line(row, earlier.get(_case(row)), more.get(_case(row))) for row in rows]


def _case(row: Row) -> tuple:
    return tuple(row[key] for key in KEYS)


def _line(row: Row, earlier: Row | None, more: float | None) -> list[Any]:
    """`earlier`: the row of the run before; `more`: by the counters, bytes more than the shipped step's; if known."""
    ms, ok = row["ms_per_token"], row["status"] == "ok"
    predicted, lever = row["predicted_us"], row["lever"]
    if row["tried"] and predicted is not None:
        predicted = -predicted  # as the gain: what it would give
    known = next((one for one in (SHIPPED, *LEVERS) if one.name == lever), None)
    aside = " (removed)" if known is None else " (tried)" if row["tried"] else ""
    return [
        row["model"], row["batch"], row["strategy"], f"{lever}{aside}" or "as shipped", row["without"],
        f"{ms:.3f} ({row['ms_p5']:.3f} to {row['ms_p95']:.3f})" if ms and ok else "-",
        number(row["gain_us"], ".1f"), _before(earlier), number(predicted if lever else None, ".0f"),
        row["predicted_launches"] or "", number(row["predicted_bytes"] / 1e6, ".2f") if row["predicted_bytes"] else "",
        number(more and more / 1e6, ".2f") if lever else "",
        number(row["drift"], ".2e"), number(row["drift_kl"], ".1e"), number(row["drift_max"], ".2e"),
        "-" if row["tokens_as_shipped"] is None else f"{row['tokens_as_shipped']} of {row['tokens_checked']}",
        row["status"],
    ]  # fmt: skip


def _before(row: Row | None) -> Any:
    """What the run before gave: the gain of a lever, the time of the shipped step."""
    if row is None or row["lever"]:
        return number(row and row["gain_us"], ".1f")
    return f"{row['ms_per_token']:.3f} ms" if row["status"] == "ok" else "-"


def newest_counters(rows: Sequence[Row]) -> list[Row]:
    """Of the counters' rows those of each case's last run, all of one date: its kernels may be others than before."""
    rows = [row | dict(lever=row.get("lever") or "") for row in rows if row["op"] == "counters"]
    last = tables.newest(rows, "counters", COUNTERS_KEYS)
    return [row for row in rows if row["date"] == last[tuple(row[field] for field in COUNTERS_KEYS)]["date"]]


def _moved_more(counted: Sequence[Row]) -> dict[tuple, float]:
    """Of each case of a lever the bytes that its step reads and writes more than the shipped step."""
    moved: dict[tuple, float] = {}
    for row in counted:
        moved[_case(row)] = moved.get(_case(row), 0) + row["read_bytes"] + row["written_bytes"]
    shipped = {case: moved.get((*case[:-1], "")) for case in moved}
    return {case: moved[case] - base for case, base in shipped.items() if case[-1] and base is not None}


def counters(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[list[Any]]]:
    """Header and lines, one for each case."""
    cases: dict[tuple, list[Row]] = {}
    for row in rows:
        cases.setdefault(tuple(row[field] for field in COUNTERS_KEYS), []).append(row)
    return COUNTERS_HEADER, [_counted(members) for _, members in sorted(cases.items())]


def _counted(rows: Sequence[Row]) -> list[Any]:
    rows = sorted(rows, key=lambda row: -row["read_bytes"])
    first, read = rows[0], sum(row["read_bytes"] for row in rows)
    named = ", ".join(f"{row['kernel']} {row['read_bytes'] / 1e6:.1f}" for row in rows[:NAMED])
    return [
        first["model"], first["implementation"], first["lever"], first["context"],
        number(first["step_bytes"] / 1e6, ".1f"), number(read / 1e6, ".1f"),
        number(100 * read / first["step_bytes"], ".1f"),
        number(sum(row["written_bytes"] for row in rows) / 1e6, ".1f"), named,
    ]  # fmt: skip
