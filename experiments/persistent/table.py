"""The variants of a run, side by side."""

from collections.abc import Sequence

from experiments.bench import tables
from experiments.bench.record import Record
from experiments.bench.tables import Table

HEADER = (
    "model", "weights", "variant", "us (p10 to p90)", "GB/s", "% of ceiling", "barriers us", "polls: cycles", "status"
)  # fmt: skip


def table(records: Sequence[Record]) -> Table:
    """In the order of the records; 'barriers us' is what a variant takes beyond one of as many programs without any."""
    bound = {_streamed(one): one["median_us"] for one in records if one["barriers"] == "none"}
    body = []
    for one in records:
        base, took = bound.get(_streamed(one)), one["median_us"]
        beyond = None if base is None or took is None else took - base
        body.append(
            [
                one["model"], one["weights"], one["variant"], tables.spread(took, one["p10_us"], one["p90_us"], ".1f"),
                tables.number(one["achieved_gbps"], ".0f"), tables.number(one["percent_of_ceiling"], ".1f"),
                tables.number(beyond, ".1f"), tables.number(one["poll_cycles"], ".0f"), one["status"],
            ]
        )  # fmt: skip
    return HEADER, body


def _streamed(one: Record) -> tuple[str, str, int]:
    """Of which model, and by how many programs, which decides how much is padding."""
    return one["model"], one["weights"], one["design"]["programs"]
