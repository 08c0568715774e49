"""Writes the tables of the README from the committed results.

    python -m experiments.report [--check] [--pictures]

Reads experiments/results/*.jsonl and rewrites what stands between `<!-- results:begin -->` and `<!-- results:end -->`
in README.md, and all of experiments/LEDGER.md. With --check nothing is written: the exit status is 1 where one of them
is not what would be written.
With --pictures the heat maps and the roofline of each device are drawn into experiments/results/<device>/ as well.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import decode_tables, ledger_tables, plots, row_log, tables
from experiments.options import fail
from experiments.promote import fullest, gpu_rows, newest
from experiments.row_log import ResultsError, Row
from experiments.rows import GPU
from experiments.tables import number
from pallas_kernels.common import devices
from pallas_kernels.common.devices import DEVICES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NOTE = "<!-- Written by `python -m experiments.report` from experiments/results/. -->"
OP_HEADER = (
    "op", "model", "rows", "context", "µs (p10 to p90)", "GB/s", "% of ceiling", "XLA µs", "times XLA",
    "error (XLA's)", "tile",
)  # fmt: skip
LAYER_HEADER = (
    "model", "rows", "context", "implementation", "prefetch KiB", "µs a layer (p10 to p90)", "GB/s", "% of ceiling",
    "launches", "µs beyond bytes, a launch",
)  # fmt: skip
DECODE = {
    "decode": "Decode, the whole greedy step (embedding, layers, head, argmax, next token), chained on the device "
    "while the cache grows; the floor is the time of its bytes at the ceiling.",
    "generate": "`python -m tokenspeed generate`, batch 1: the figures that the command prints, prefill included.",
}
"""Rows of whole steps, and what their tables say of themselves."""
CLAIM = (
    "A token of greedy decode, batch 1, bf16, context 1024: embedding, all layers, head, argmax, every step on the one "
    "before, random weights; the floor is the bytes of weights and cache at the read ceiling measured in the same run."
)
LEDGER = (
    "The greedy step of `experiments.decode`, timed as it ships and with one lever left out at a time, in turn in one "
    "run. *gives*: by how much the step is slower without the lever (for one that was tried and is not in it: faster "
    "with it; one that was removed gave nothing, and its row is of a commit that had it). The control is the same step "
    "twice: less than that is not told from nothing; beside each is what the run before gave. *predicted*: by the "
    "arithmetic of experiments/levers.py, with the launches and megabytes that the step without it has more; "
    "*measured*: megabytes read and written, by the GPU's counters, where they were asked. *drift*, "
    "*KL*, *largest*: of the logits of that step from the same step in float64, as RMS over RMS, mean divergence and "
    "largest difference. What was tried before a lever was settled, and what bounds the rest: [NOTES.md](NOTES.md)."
)
COUNTERS = (
    "Bytes of a step by the GPU's own counters (`python -m experiments.counters`), against those that it must read: "
    "every weight once, and the keys and values so far. "
)


def render(rows: Sequence[Row]) -> str:
    """The tables of all devices, in Markdown."""
    by_device: dict[str, list[Row]] = {}
    for row in rows:
        if row["op"] == "layer" or row.get("mode") == GPU or _is_of_decode(row):
            by_device.setdefault(row.get("device") or "unknown device", []).append(row)
    most_first = sorted(by_device.items(), key=lambda item: -len(item[1]))
    parts = [_device(device, members) for device, members in most_first]
    return "\n\n".join([NOTE, *parts]) if parts else f"{NOTE}\n\nNo results of a GPU are committed yet."


def _is_of_decode(row: Row) -> bool:
    """Whether a row is of a whole decode step, on a GPU."""
    return row["op"] in DECODE and not (row.get("device") or "").startswith("cpu")


def _device(device: str, rows: Sequence[Row]) -> str:
    decoded = [row for row in rows if row["op"] in DECODE]
    layers = [row for row in rows if row["op"] not in DECODE]
    return "\n\n".join([f"### {device}", *_decode(decoded), *_kernels(layers)])


def _decode(rows: Sequence[Row]) -> list[str]:
    """The tables of whole steps, each with where it comes from."""
    parts = []
    if claimed := decode_tables.claimed(rows):
        parts += [
            f"{CLAIM} {_origin(claimed)}",
            tables.markdown(*decode_tables.claim(claimed)),
            decode_tables.OTHERS_HOW,
        ]
    for op, what in DECODE.items():
        members = decode_tables.newest(rows, op)
        if members:
            parts += [f"{what} {_origin(members)}", tables.markdown(*decode_tables.TABLES[op](members))]
    return parts


def _kernels(rows: Sequence[Row]) -> list[str]:
    """The tables of layers and of single kernels."""
    winners, layers, tried, ran = [], [], 0, 0
    for (op, *_), members in tables.by_case(rows).items():
        if op == "layer":
            members = newest(members)
            last = {(row.get("implementation"), row.get("prefetch_bytes")): row for row in members}
            layers += [row for row in last.values() if row.get("median_us") is not None]
            continue
        members = fullest(members)
        ok = tables.timed(members)
        tried += len({str(row["tiles"]) for row in members})
        ran += len(ok)
        winners += ok[:1]
    shown = [*winners, *layers]
    parts = []
    if shown:
        parts.append(
            f"{_dtypes(shown)}, weights and cache cold, dependent calls chained on the device. {_origin(shown)}"
        )
    if layers:
        parts.append(tables.markdown(LAYER_HEADER, [_layer_line(row) for row in layers]))
    if winners:
        parts.append(tables.markdown(OP_HEADER, [_op_line(row) for row in winners]))
        parts.append(f"The fastest tile of each case; {tried} were tried, {ran} of them ran and were right.")
    return parts


def _dtypes(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(str(row["dtype"]) for row in rows))


def _origin(rows: Sequence[Row]) -> str:
    """Where the rows come from, in a sentence or two."""

    def all_of(field: str) -> list[str]:
        return sorted({str(row[field]) for row in rows if row.get(field) is not None})

    found = [row.get("ceiling_gbps") or row.get("read_ceiling_gbps") for row in rows]
    ceilings = sorted(ceiling for ceiling in found if ceiling)
    parts = []
    if ceilings:
        low, high = f"{ceilings[0]:.0f}", f"{ceilings[-1]:.0f}"
        parts.append(f"read ceiling measured in the same run {low if low == high else f'{low} to {high}'} GB/s")
    parts += [f"{name} {', '.join(all_of(name))}" for name in ("driver", "jax") if all_of(name)]
    if all_of("commit"):
        parts.append(f"commit {', '.join(commit[:12] for commit in all_of('commit'))}")
    if dates := sorted({date[:10] for date in all_of("date")}):
        parts.append(dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}")
    text = "; ".join(parts)
    commands = "".join(f" `{command}`" for command in all_of("command"))
    return f"{text[:1].upper()}{text[1:]}.{' Command:' if commands else ''}{commands}"


def _time(row: Row) -> str:
    spread = "" if row.get("p10_us") is None else f" ({row['p10_us']:.2f} to {row['p90_us']:.2f})"
    return f"{row['median_us']:.2f}{spread}"


def _op_line(row: Row) -> list[Any]:
    xla = row.get("xla_us")
    return [
        row["op"], row["model"], row["rows"], row["context"] or "", _time(row), number(row["achieved_gbps"], ".0f"),
        number(row["percent_of_ceiling"], ".1f"), number(xla), number(xla and xla / row["median_us"]),
        f"{row['error']:.1e} ({row['error_xla']:.1e})", tables.tiles_text(row["tiles"]),
    ]  # fmt: skip


def _layer_line(row: Row) -> list[Any]:
    gbps = row["bytes"] / row["median_us"] / 1e3
    ceiling = row.get("ceiling_gbps")
    return [
        row["model"], row["rows"], row["context"], row.get("implementation") or "",
        (row.get("prefetch_bytes") or 0) // 1024 or "", _time(row), number(gbps, ".0f"),
        number(ceiling and 100 * gbps / ceiling, ".1f"), row.get("launches") or "",
        number(row.get("beyond_bytes_us_per_launch")),
    ]  # fmt: skip


def ledger(rows: Sequence[Row]) -> str:
    """The page of the ledger, in Markdown."""
    parts = ["# The ledger: what each lever gives a decode step, and what it does to the numbers", NOTE, LEDGER]
    for device in dict.fromkeys(row["device"] for row in rows if row["op"] == "ledger"):
        members = [row for row in rows if row["device"] == device]
        found = ledger_tables.newest(members)
        parts += [f"## {device}", _origin(found), tables.markdown(*ledger_tables.ledger(members))]
        if counted := ledger_tables.newest_counters(members):
            parts += [COUNTERS + _origin(counted), tables.markdown(*ledger_tables.counters(counted))]
    return "\n\n".join(parts) + "\n"


def replaced(readme: str, tables_text: str) -> str:
    """The README with the part between the markers replaced."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ResultsError(f"README: expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{tables_text}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the README is out of date")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures too (needs the extra 'plot')")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--ledger", type=Path, help="default: LEDGER.md beside the folder of results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="a folder of JSONL files")
    arguments = parser.parse_args(argv)
    arguments.ledger = arguments.ledger or arguments.results.parent / "LEDGER.md"
    try:
        rows = [row for path in sorted(arguments.results.glob("*.jsonl")) for row in row_log.read(path)]
        if not arguments.readme.is_file():
            raise ResultsError(f"readme: no file {arguments.readme}")
        pages = {
            arguments.readme: replaced(arguments.readme.read_text(), render(rows)),
            arguments.ledger: ledger(rows),
        }
    except ResultsError as error:
        return fail(error)
    old = {page: page.read_text() if page.is_file() else "" for page in pages}
    if arguments.check:
        stale = [page.name for page in pages if old[page] != pages[page]]
        for name in stale:
            print(f"{name}: its results are out of date; run python -m experiments.report", file=sys.stderr)
        return int(bool(stale))
    for page, text in pages.items():
        if old[page] != text:
            page.write_text(text)
        print(f"{page.name}: {'written' if old[page] != text else 'already up to date'}")
    if arguments.pictures:
        for device in DEVICES.values():
            folder = arguments.results / device.key
            members = [row for _, case in tables.by_case(gpu_rows(rows, device)).items() for row in fullest(case)]
            if members:
                print("\n".join(plots.draw_gpu(members, folder, device)))
            decoded = [row for row in rows if devices.find(row.get("device") or "") == device]
            if decoded := decode_tables.newest(decoded, "decode"):
                print(plots.draw_decode(decoded, folder / "decode.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
