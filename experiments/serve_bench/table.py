"""The table of servers under load."""

from collections.abc import Sequence

from experiments.bench.record import Record
from experiments.bench.tables import Table, number

HEADER = (
    "server", "mix", "arrivals", "rate or at a time", "requests/s", "errors, rejected", "TTFT ms p50, p95, p99",
    "ms between tokens p50, p99", "whole ms p50, p99", "tokens/s", "tokens/s a request", "goodput/s",
)  # fmt: skip


def serve_table(records: Sequence[Record]) -> Table:
    """A line for each record, in their order."""
    body = [
        [
            one["endpoint"], one["mix"], one["arrivals"], one["concurrency"] or number(one["rate"], "g"),
            number(one["requests_per_s"]), f"{one['errors']}, {one['rejected']}",
            _several(one, "ttft", 50, 95, 99), _several(one, "itl", 50, 99), _several(one, "whole", 50, 99),
            number(one["output_tokens_per_s"], ".1f"), number(one["request_tokens_per_s_p50"], ".1f"),
            number(one["goodput_per_s"]),
        ]
        for one in records
    ]  # fmt: skip
    return HEADER, body


def _several(one: Record, name: str, *percents: int) -> str:
    return ", ".join(str(number(one[f"{name}_ms_p{percent}"], ".1f")) for percent in percents)
