"""The table of servers under load: those that had the same one are beside each other."""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.bench import record
from experiments.bench.record import Record
from experiments.bench.tables import Table, number
from experiments.serve_bench.mixes import MIXES

LOAD = (
    "model", "mix", "arrivals", "burst", "input_unit", "spread", "chat_input", "chat_output", "long_input",
    "long_output", "long_every_s",
)  # fmt: skip
"""Fields that say what is asked, but for how much of it."""
HEADER = (
    "model", "load", "requests a second", "server", "TTFT ms p50, p95, p99", "TPOT ms p50, p99",
    "ms between events p99", "tokens/s a request", "tokens/s", "goodput/s", "TTFT p95 with long / without",
    "errors, rejected", "runs",
)  # fmt: skip


SEVERAL = 1.05
"""Tokens that come at once, on average, that are told."""


class Group:
    """The runs of one load at one rate on one server; figures are medians over those that count."""

    def __init__(self, runs: Sequence[Record]):
        self.runs, self.first = runs, runs[0]
        self.counted = [one for one in runs if one["status"] == "ok"]

    def __getitem__(self, field: str) -> float | None:
        values = [one[field] for one in self.counted if one[field] is not None]
        return statistics.median(values) if values else None

    @property
    def load(self) -> tuple:
        return tuple(self.first[field] for field in LOAD)

    @property
    def amount(self) -> float | None:
        """Requests a second, or those under way at a time."""
        return self.first["concurrency"] if self.first["rate"] is None else self.first["rate"]

    @property
    def status(self) -> str:
        return "; ".join(sorted({one["status"] for one in self.runs if one["status"] != "ok"})) or "ok"


def groups_of(records: Sequence[Record]) -> list[Group]:
    """By load, then by rate, then by server; of a run that was made again the newest."""
    found: dict[tuple, list[Record]] = {}
    for one in record.newest(records, "serve"):
        key = tuple(one[field] for field in (*LOAD, "rate", "concurrency", "endpoint"))
        found.setdefault(key, []).append(one)
    return [Group(found[key]) for key in sorted(found, key=_order)]


def _order(key: tuple) -> list[tuple]:
    """By the mixes' own order; what is not there stands before what is."""
    model, mix, *rest = key
    return [
        (True, model),
        (True, MIXES.index(mix)),
        *((value is not None, 0 if value is None else value) for value in rest),
    ]


def load_name(one: Record) -> str:
    """'chat, 1024 in, 128 out, poisson'."""
    unit = "" if one["input_unit"] == "tokens" else " words"
    kinds = dict(chat=("chat",), long=("long",)).get(one["mix"], ("chat", "long"))
    sizes = [f"{kind}, {one[f'{kind}_input']}{unit} in, {one[f'{kind}_output']} out" for kind in kinds]
    every = "" if one["mix"] != "both" or one["rate"] is None else f" every {one['long_every_s']:g} s"
    bursts = f" of {one['burst']}" if one["arrivals"] == "bursty" else ""
    return f"{'; '.join(sizes)}{every}; {one['arrivals']}{bursts}"


def serve_table(records: Sequence[Record]) -> Table:
    """A line for each load, rate and server."""
    groups = groups_of(records)
    header, lines = HEADER, [_line(group) for group in groups]
    if any((group["tokens_at_once_mean"] or 1) > SEVERAL for group in groups):
        header = (*header, "tokens at once")
        lines = [[*line, number(group["tokens_at_once_mean"])] for line, group in zip(lines, groups)]
    if any(group.status != "ok" for group in groups):
        header, lines = (*header, "status"), [[*line, group.status] for line, group in zip(lines, groups)]
    return header, lines


def _line(group: Group) -> list[Any]:
    one = group.first
    return [
        one["model"], load_name(one),
        f"{one['concurrency']} at a time" if one["rate"] is None else f"{one['rate']:g}", one["endpoint"],
        _several(group, "ttft", 50, 95, 99), _several(group, "tpot", 50, 99), number(group["itl_ms_p99"]),
        number(group["request_tokens_per_s_p50"], ".1f"), number(group["output_tokens_per_s"], ".1f"),
        number(group["goodput_per_s"]), number(group["ttft_p95_ratio"]),
        ", ".join(str(sum(one[field] for one in group.runs)) for field in ("errors", "rejected")),
        len(group.counted) if len(group.counted) == len(group.runs) else f"{len(group.counted)} of {len(group.runs)}",
    ]  # fmt: skip


def _several(group: Group, name: str, *percents: int) -> str:
    return ", ".join(str(number(group[f"{name}_ms_p{percent}"], ".1f")) for percent in percents)
