"""The table of prefill."""

from collections.abc import Sequence

from experiments.bench import record, tables
from experiments.bench.record import Record
from experiments.bench.tables import Table, number
from experiments.bench.unquantised import with_ratio
from experiments.decode.table import with_extras

ORDER = ("device", "model", "dtype", "start", "batch", "tokens", "prefill_backend", "implementation")
HEADER = (
    "model", "dtype", "batch", "start", "tokens", "floor ms", "ms (p5 to p95)", "TFLOP/s", "products ms",
    "attention ms", "gathers ms", "attention by",
)  # fmt: skip


def newest(records: Sequence[Record]) -> list[Record]:
    """The newest record of each case, by case."""
    return sorted(record.newest(records, "prefill"), key=lambda one: tuple(one[field] for field in ORDER))


def prefill_table(records: Sequence[Record]) -> Table:
    """The newest of each case: whole prompts, which start at 0, before chunks."""
    records = newest(records)
    lines = []
    for one in records:
        ok = one["status"] == "ok"
        ms, tflops, *parts = (
            one[field] if ok else None for field in ("ms", "tflops", "products_ms", "attention_ms", "gather_ms")
        )
        lines.append(
            [
                one["model"], one["dtype"], one["batch"], one["start"], one["tokens"], number(one["floor_ms"]),
                tables.spread(ms, one["ms_p5"], one["ms_p95"]), number(tflops, ".1f"),
                *(number(part) for part in parts), one["prefill_backend"],
            ]
        )  # fmt: skip
    return with_extras(*with_ratio(HEADER, lines, records, records, ORDER, "ms"), records)
