"""Pictures of servers under load: how long a first token and the next ones take, by how many requests arrive."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench.pictures import save
from experiments.bench.record import Record
from experiments.serve_bench.mixes import MIXES
from experiments.serve_bench.table import Group, groups_of, load_name

PANELS = (
    ("to the first token", "ttft_ms_p99", "ttft_ms_p50", "slo_ttft_ms"),
    ("between tokens: p99 of all gaps, p50 of the requests' means", "itl_ms_p99", "tpot_ms_p50", "slo_tpot_ms"),
)
"""Title, the figure that has a line, the one that has a dashed line, the objective."""
MARKERS = "os^Dv<>p"


def draw_serve(records: Sequence[Record], folder: str | Path) -> list[str]:
    """A picture for each mix, of the records that count; returns a line about each."""
    groups = [group for group in groups_of(records) if group.amount is not None]
    counted = {group.first["mix"] for group in groups if group.counted}
    found = {mix: [group for group in groups if group.first["mix"] == mix] for mix in MIXES}
    lines = [
        save(lambda plt, g=mine: _curves(plt, g), folder, f"serve-{mix}")
        for mix, mine in found.items()
        if mix in counted
    ]
    return lines or ["No picture: no run of a server counts."]


def _curves(plt: Any, groups: Sequence[Group]) -> Any:
    """A row of panels a load, in each two lines an endpoint."""
    loads = list(dict.fromkeys(group.load for group in groups if group.counted))
    names = sorted({group.first["endpoint"] for group in groups})
    figure = plt.figure(figsize=(10.5, 3.8 * len(loads)), layout="constrained")
    for row, load in zip(figure.subfigures(len(loads), squeeze=False)[:, 0], loads):
        mine = [group for group in groups if group.load == load]
        void = sum(len(group.runs) - len(group.counted) for group in mine)
        left = f"; void runs, left out: {void}" if void else ""
        row.suptitle(f"{mine[0].first['model']}: {load_name(mine[0].first)}{left}", fontsize=10)
        axes = row.subplots(1, len(PANELS))
        for axis, panel in zip(axes, PANELS):
            _panel(axis, [group for group in mine if group.counted], names, *panel)
        axes[-1].legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _panel(axis: Any, groups: Sequence[Group], names: Sequence[str], title: str, high: str, low: str, slo: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("requests under way" if groups[0].first["rate"] is None else "requests a second")
    axis.set_ylabel("ms")
    for i, name in enumerate(names):
        mine = [group for group in groups if group.first["endpoint"] == name]
        for field, style, fill in ((high, "-", f"C{i}"), (low, "--", "white")):
            points = [(group.amount, group[field]) for group in mine if group[field]]
            if points:
                axis.plot(
                    *zip(*points), style + MARKERS[i % len(MARKERS)], color=f"C{i}", mfc=fill, ms=5,
                    label=f"{name}, {field[-3:]}",
                )  # fmt: skip
    if not axis.lines:
        return
    if objective := groups[0].first[slo]:
        axis.axhline(objective, color="0.3", ls=":", lw=1, label="objective")
    amounts = sorted({group.amount for group in groups if group.amount is not None})
    axis.set_xscale("log", base=2)
    axis.set_xticks(amounts, [f"{amount:g}" for amount in amounts])
    axis.minorticks_off()
    axis.set_yscale("log", subs=(2, 5))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="y", which="minor", labelsize=8, labelcolor="0.3")
    axis.grid(True, which="both", color="0.92")
