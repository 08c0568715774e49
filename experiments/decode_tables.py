"""Tables of decode: those of the benchmark and those of the command line's own figures."""

from collections.abc import Sequence
from typing import Any

from experiments import tables
from experiments.row_log import Row
from experiments.tables import number

CASE = ("device", "model", "dtype", "batch", "context")
KEYS = {
    "decode": (*CASE, "implementation"),
    "generate": ("device", "model", "dtype", "prompt_tokens", "implementation"),
}
"""What makes two rows of an op the same measurement, and the order in which they are shown."""
DECODE_HEADER = (
    "model", "dtype", "batch", "context", "implementation", "floor ms", "ms/token (p5 to p95)", "tokens/s", "GB/s",
    "% of ceiling", "XLA ms", "times XLA",
)  # fmt: skip
GENERATE_HEADER = (
    "model", "dtype", "prompt tokens", "implementation", "TTFT ms", "decode tokens/s", "% of ceiling",
)  # fmt: skip
CLAIM_HEADER = (
    "model", "floor ms", "ms/token (p5 to p95)", "% of floor's rate", "plain XLA ms", "torch.compile ms", "vLLM ms",
)  # fmt: skip
OTHERS = {
    ("NVIDIA H200", "llama-3.1-8b"): ("4.67", "4.99"),
    ("NVIDIA H200", "llama-3.2-1b"): ("1.11", "0.94 to 1.23"),
}
"""ms a token of torch 2.11 (max-autotune, CUDA graph, a plain model) and of vLLM 0.26.0 (compile, CUDA graphs, FA3)."""
OTHERS_HOW = (
    "torch 2.11 (`max-autotune`, CUDA graph, a plain model, 128 steps) and vLLM 0.26.0 (compile, CUDA graphs, FA3; a "
    "run of 256 tokens less one of 128) were measured once on an H200 on 2026-11-22, bf16, batch 1, dummy weights, "
    "contexts 1024 to 1280, each in its own loop and by no command of this project."
)
Table = tuple[tuple[str, ...], list[list[Any]]]
"""Header and lines."""


def newest(rows: Sequence[Row], op: str) -> list[Row]:
    """The rows of the op; of those of the same measurement the one of the last date."""
    last = tables.newest(rows, op, KEYS[op])
    return [last[key] for key in sorted(last)]


def decode(rows: Sequence[Row]) -> Table:
    """Of rows of `experiments.decode`, the newest of each case and implementation.

    XLA has a line of its own only where nothing else has a time: beside another it is a column.
    """
    rows = newest(rows, "decode")
    beside = {_case(row) for row in rows if row["implementation"] != "xla" and row["status"] == "ok"}
    rows = [row for row in rows if row["implementation"] != "xla" or _case(row) not in beside]
    return _with_status(DECODE_HEADER, [_decode_line(row) for row in rows], rows)


def claimed(rows: Sequence[Row]) -> list[Row]:
    """Of rows of `experiments.decode` those of batch 1 at context 1024 in bf16, the fastest of each model."""
    mine = [row for row in newest(rows, "decode") if (row["batch"], row["context"], row["dtype"]) == (1, 1024, "bf16")]
    best: dict[str, Row] = {}
    for row in mine:
        if row["status"] == "ok" and row["implementation"] != "xla":
            best[row["model"]] = min(row, best.get(row["model"], row), key=lambda one: one["ms_per_token"])
    return list(best.values())


def claim(rows: Sequence[Row]) -> Table:
    """Of `claimed` rows, beside others."""
    return CLAIM_HEADER, [
        [
            row["model"], number(row["floor_ms"], ".3f"),
            f"**{row['ms_per_token']:.3f}** ({row['ms_p5']:.3f} to {row['ms_p95']:.3f})",
            number(row["percent_of_ceiling"], ".1f"), number(row["xla_ms_per_token"], ".3f"),
            *OTHERS.get((row["device"], row["model"]), ("-", "-")),
        ]
        for row in rows
    ]  # fmt: skip


def _case(row: Row) -> tuple:
    return tuple(row[field] for field in CASE)


def _decode_line(row: Row) -> list[Any]:
    ms, xla, rate, gbps, percent = _counting(
        row, "ms_per_token", "xla_ms_per_token", "tokens_per_s", "achieved_gbps", "percent_of_ceiling"
    )
    return [
        row["model"], row["dtype"], row["batch"], row["context"], row["implementation"], number(row["floor_ms"], ".3f"),
        f"{ms:.3f} ({row['ms_p5']:.3f} to {row['ms_p95']:.3f})" if ms else "-", number(rate, ".1f"),
        number(gbps, ".0f"), number(percent, ".1f"), number(xla, ".3f"), number(xla and xla / ms),
    ]  # fmt: skip


def generate(rows: Sequence[Row]) -> Table:
    """Of rows of `experiments.generate`, the newest of each model, prompt and implementation."""
    rows = newest(rows, "generate")
    return _with_status(GENERATE_HEADER, [_generate_line(row) for row in rows], rows)


def _generate_line(row: Row) -> list[Any]:
    ttft, rate, percent = _counting(row, "ttft_ms", "decode_tokens_per_s", "percent_of_ceiling")
    return [
        row["model"], row["dtype"], row["prompt_tokens"], row["implementation"], number(ttft, ".1f"),
        number(rate, ".1f"), number(percent, ".1f"),
    ]  # fmt: skip


def _counting(row: Row, *fields: str) -> list[Any]:
    """The figures of a row, None where it does not count."""
    return [row[field] if row["status"] == "ok" else None for field in fields]


def _with_status(header: tuple[str, ...], lines: list[list[Any]], rows: Sequence[Row]) -> Table:
    """The table with a column for the status where one is not 'ok'."""
    if all(row["status"] == "ok" for row in rows):
        return header, lines
    return (*header, "status"), [[*line, row["status"]] for line, row in zip(lines, rows, strict=True)]


TABLES = {"decode": decode, "generate": generate}
