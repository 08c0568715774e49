"""Pictures of a sweep: a heat map per op, and a roofline."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench import cases, select, tables
from experiments.bench.cases import Case
from experiments.bench.pictures import save
from experiments.bench.record import Record
from experiments.bench.recorded import OPS
from experiments.sweep import grid
from experiments.sweep.options import Options
from pallas_kernels import Device

Cells = dict[tuple[int, int], float | None]
COLUMNS = 4


def axes_of(op: str) -> tuple[str, str]:
    """The tile fields along the vertical and the horizontal axis of an op's heat map."""
    return ("block_s", "splits") if op == "attention" else ("block_n", "block_k")


def best_cells(records: Sequence[Record], op: str) -> Cells:
    """Best GB/s by the two fields of the map; None where every tile that was tried failed."""
    first, second = axes_of(op)
    cells: Cells = {}
    for one in records:
        at = one["tiles"][first], one["tiles"][second]
        gbps = one["achieved_gbps"] if one["status"] == "ok" else None
        cells[at] = max((value for value in (gbps, cells.get(at)) if value is not None), default=None)
    return cells


def feasible_cells(case: Case, options: Options, device: Device) -> Cells:
    """Share of a case's tiles in each cell that a GPU can run, in percent; None where it is none."""
    first, second = axes_of(case.op)
    found: dict[tuple[int, int], list[bool]] = {}
    for tiles in grid.space_of(case, options):
        fields = dataclasses.asdict(tiles)
        verdict = bool(case.known.feasible(tiles, case.shape, device))
        found.setdefault((fields[first], fields[second]), []).append(verdict)
    return {at: 100 * sum(each) / len(each) if any(each) else None for at, each in found.items()}


def draw_gpu(records: Sequence[Record], folder: str | Path, device: Device) -> list[str]:
    """The pictures of a sweep on a GPU; returns a line about each."""
    measured = [one for one in records if one["kind"] == "tile"]
    if not measured:
        return ["No pictures: no tile was measured."]
    lines = []
    for op in dict.fromkeys(one["op"] for one in measured):
        panels = {
            _case_title(members[0]): best_cells(members, op)
            for members in select.by_case([one for one in measured if one["op"] == op]).values()
        }
        title = f"{op} on {device.name}: GB/s, cold, the best over the other tile fields"
        lines.append(save(lambda plt, p=panels, t=title, o=op: heat_maps(plt, p, t, axes_of(o)), folder, op))
    points = []
    for members in select.by_case(measured).values():
        for best in select.timed(members)[:1]:
            points.append((best["op"], best["model"], *_point(best, best["median_us"]), best["ceiling_gbps"]))
    if points:
        roofs = {"read ceiling measured in this run": points[-1][-1], "datasheet": device.datasheet_gbps}
        title = f"Fastest tile of each case on {device.name}, cold"
        lines.append(save(lambda plt: _roofline(plt, points, roofs, title), folder, "roofline"))
    return lines


def draw_cpu(records: Sequence[Record], folder: str | Path, options: Options, device: Device) -> list[str]:
    """The pictures of a sweep without a GPU, which show no time of a kernel; returns a line about each."""
    lines = []
    for op in options.ops:
        shown = grid.all_cases(
            (op,), options.models, options.rows[:1], options.dtypes[:1], options.contexts, options.page_sizes,
            options.kv_dtypes,
        )  # fmt: skip
        panels = {_case_title(case.fields()): feasible_cells(case, options, device) for case in shown}
        title = f"{op}: % of the tiles that {device.name} can run, by the rules of feasible(); nothing was run"
        draw = lambda plt, p=panels, t=title, o=op: heat_maps(plt, p, t, axes_of(o))
        lines.append(save(draw, folder, f"{op}-feasible"))
    timed = [one for one in records if one["kind"] == "xla_on_cpu" and one["status"].startswith("ok")]
    if timed:
        points = [(one["op"], one["model"], *_point(one, one["xla_us"]), one["ceiling_gbps"]) for one in timed]
        roofs = {"read ceiling of this processor, measured in this run": points[-1][-1]}
        title = "XLA's implementation on this processor (no Pallas kernel was timed)"
        lines.append(save(lambda plt: _roofline(plt, points, roofs, title), folder, "roofline-cpu-xla"))
    return lines


def _case_title(one: Record) -> str:
    context = (
        f", context {tables.in_pages(one['context'], one['page_size'], one['kv_dtype'])}" if one["context"] else ""
    )
    return f"{one['model']}, {one['rows']} row{'s' if one['rows'] > 1 else ''}{context}, {one['dtype']}"


def _point(one: Record, us: float) -> tuple[float, float]:
    """(operations per byte, 1e9 operations a second)."""
    case = cases.of_record(one)
    return case.cost.operations / case.cost.bytes, case.cost.operations / us / 1e3


def heat_maps(plt: Any, panels: dict[str, Cells], title: str, axes: tuple[str, str]) -> Any:
    """One map a case; hatched where every tile tried failed, blank where none was tried."""
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, grid_of_axes = plt.subplots(
        lines, columns, figsize=(4.6 * columns, 0.7 + 3.6 * lines), squeeze=False, layout="constrained"
    )
    figure.suptitle(title)
    for axis in grid_of_axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (name, cells) in zip(grid_of_axes.flat, panels.items()):
        ys, xs = (sorted({at[i] for at in cells}) for i in range(2))
        values = [[cells.get((y, x)) for x in xs] for y in ys]
        numbers = [[math.nan if value is None else value for value in line] for line in values]
        image = axis.imshow(numbers, cmap="viridis", aspect="auto", origin="lower", vmin=0)
        for (y, x), value in cells.items():
            at = xs.index(x), ys.index(y)
            if value is None:
                box = plt.Rectangle((at[0] - 0.5, at[1] - 0.5), 1, 1, fill=False, hatch="///", edgecolor="0.6", lw=0)
                axis.add_patch(box)
                continue
            dark = value < 0.6 * (image.norm.vmax or 1)
            axis.text(*at, f"{value:.0f}", ha="center", va="center", fontsize=8, color="w" if dark else "k")
        axis.set_xticks(range(len(xs)), xs)
        axis.set_yticks(range(len(ys)), ys)
        axis.set_ylabel(axes[0])
        axis.set_xlabel(axes[1])
        axis.set_title(name, fontsize=9)
    return figure


def _roofline(plt: Any, points: Sequence[tuple], roofs: dict[str, float], title: str) -> Any:
    """Points (op, model, operations per byte, 1e9 operations a second, ...) under lines of GB/s; both axes are log."""
    figure, axis = plt.subplots(figsize=(10, 5.4), layout="constrained")
    xs = [point[2] for point in points]
    low, high = min(xs) / 2, max(xs) * 2
    for (name, gbps), style in zip(roofs.items(), ("-", "--")):
        axis.plot([low, high], [low * gbps, high * gbps], style, color="0.3", label=f"{name}: {gbps:.0f} GB/s")
    models = list(dict.fromkeys(point[1] for point in points))
    colours = {op: f"C{i}" for i, op in enumerate(OPS)}
    for op, model, x, y, *_ in points:
        axis.plot(x, y, "os^Dv<>p"[models.index(model) % 8], color=colours[op], ms=7)
    for op in dict.fromkeys(point[0] for point in points):
        axis.plot([], [], "o", color=colours[op], label=op)
    for i, model in enumerate(models):
        axis.plot([], [], "os^Dv<>p"[i % 8], color="0.3", mfc="none", label=model)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("operations per byte")
    axis.set_ylabel("1e9 operations a second")
    axis.set_title(title)
    axis.grid(True, which="both", color="0.92")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
