"""The table of ablations."""

from collections.abc import Sequence
from typing import Any

from experiments.ablation.ablations import ABLATIONS, SHIPPED
from experiments.bench import record, tables
from experiments.bench.record import Record
from experiments.bench.tables import Table, number

HEADER = ("model", "batch", "left out", "ms/token (p5 to p95)", "gives us", "run before", "predicted us", "status")


def newest(records: Sequence[Record]) -> list[Record]:
    """Of each model and batch the newest record of each ablation, the shipped step first."""
    found = record.newest(records, "ablation")
    models = list(dict.fromkeys(one["model"] for one in found))
    return sorted(found, key=lambda one: (models.index(one["model"]), one["batch"], bool(one["ablation"])))


def before(records: Sequence[Record]) -> dict[str, Record]:
    """By measurement, the record of the run before the last."""
    last = {record.key(one): one["date"] for one in record.newest(records, "ablation")}
    earlier = [one for one in records if one["kind"] == "ablation" and one["date"] < last[record.key(one)]]
    return {record.key(one): one for one in record.newest(earlier, "ablation")}


def ablation_table(records: Sequence[Record]) -> Table:
    """What each gives, beside what it gave the run before and what arithmetic says."""
    earlier = before(records)
    return HEADER, [_line(one, earlier.get(record.key(one))) for one in newest(records)]


def name_of(found: Record) -> str:
    """Of an ablation, with what became of it since."""
    known = next((one for one in (SHIPPED, *ABLATIONS) if one.name == found["ablation"]), None)
    aside = " (removed)" if known is None else " (tried)" if found["tried"] else ""
    return f"{found['ablation']}{aside}" or "nothing: as shipped"


def _line(found: Record, earlier: Record | None) -> list[Any]:
    ok, predicted = found["status"] == "ok", found["predicted_us"]
    if found["tried"] and predicted is not None:
        predicted = -predicted  # as the gain: what it would give
    return [
        found["model"], found["batch"], name_of(found),
        tables.spread(found["ms_per_token"] if ok else None, found["ms_p5"], found["ms_p95"], ".3f"),
        number(found["gain_us"], ".1f"), _before(earlier), number(predicted if found["ablation"] else None, ".0f"),
        found["status"],
    ]  # fmt: skip


def _before(found: Record | None) -> Any:
    """What the run before gave: the gain of an ablation, the time of the shipped step."""
    if found is None or found["ablation"]:
        return number(found and found["gain_us"], ".1f")
    return f"{found['ms_per_token']:.3f} ms" if found["status"] == "ok" else "-"
