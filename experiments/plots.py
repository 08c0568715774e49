"""Pictures of results: a heat map per op, a roofline, and decode's share of the ceiling, as PNG."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import cases, grid, tables
from experiments.options import Options
from experiments.row_log import Row
from experiments.rows import GPU, XLA_CPU
from pallas_kernels.common.devices import Device

Cells = dict[tuple[int, int], float | None]
COLUMNS = 4
DPI = 110


def axes_of(op: str) -> tuple[str, str]:
    """The tile fields along the vertical and the horizontal axis of an op's heat map."""
    return ("block_s", "splits") if op == "attention" else ("block_n", "block_k")


def best_cells(rows: Sequence[Row], op: str) -> Cells:
    """Best GB/s by the two fields of the map; None where every tile that was tried failed."""
    first, second = axes_of(op)
    cells: Cells = {}
    for row in rows:
        at = row["tiles"][first], row["tiles"][second]
        gbps = row["achieved_gbps"] if row["status"] == "ok" else None
        cells[at] = max((value for value in (gbps, cells.get(at)) if value is not None), default=None)
    return cells


def feasible_cells(op: str, model: str, rows: int, context: int, dtype: str, options: Options, device: Device) -> Cells:
    """Share of the tiles in each cell that a GPU can run, in percent; None where it is none."""
    case = cases.make(op, model, rows=rows, context=context, dtype=dtype)
    first, second = axes_of(op)
    found: dict[tuple[int, int], list[bool]] = {}
    for tiles in grid.space_of(case, options):
        fields = dataclasses.asdict(tiles)
        verdict = bool(case.tiles.feasible(tiles, case.shape, device))
        found.setdefault((fields[first], fields[second]), []).append(verdict)
    return {at: 100 * sum(each) / len(each) if any(each) else None for at, each in found.items()}


def draw_gpu(rows: Sequence[Row], folder: str | Path, device: Device) -> list[str]:
    """The pictures of a sweep on a GPU; returns a line about each."""
    measured = [row for row in rows if row.get("mode") == GPU and row["tiles"]]
    if not measured:
        return ["No pictures: no tile was measured."]
    lines = []
    for op in dict.fromkeys(row["op"] for row in measured):
        panels = {
            _case_title(members[0]): best_cells(members, op)
            for members in tables.by_case([row for row in measured if row["op"] == op]).values()
        }
        title = f"{op} on {device.name}: GB/s, cold, the best over the other tile fields"
        lines.append(_save(lambda plt, p=panels, t=title, o=op: heat_maps(plt, p, t, axes_of(o)), folder, op))
    points = []
    for members in tables.by_case(measured).values():
        for best in tables.timed(members)[:1]:
            points.append((best["op"], best["model"], *_point(best, best["median_us"]), best["ceiling_gbps"]))
    if points:
        roofs = {"read ceiling measured in this run": points[-1][-1], "datasheet": device.datasheet_gbps}
        title = f"Fastest tile of each case on {device.name}, cold"
        lines.append(_save(lambda plt: _roofline(plt, points, roofs, title), folder, "roofline"))
    return lines


def draw_cpu(rows: Sequence[Row], folder: str | Path, options: Options, device: Device) -> list[str]:
    """The pictures of a sweep without a GPU, which show no time of a kernel; returns a line about each."""
    lines = []
    for op in options.ops:
        panels = {}
        for model in options.models:
            for context in options.contexts if op == "attention" else options.contexts[:1]:
                count, dtype = options.rows[0], options.dtypes[0]
                row = dict(model=model, rows=count, context=context if op == "attention" else None, dtype=dtype)
                panels[_case_title(row)] = feasible_cells(op, model, count, context, dtype, options, device)
        title = f"{op}: % of the tiles that {device.name} can run, by the rules of feasible(); nothing was run"
        draw = lambda plt, p=panels, t=title, o=op: heat_maps(plt, p, t, axes_of(o))
        lines.append(_save(draw, folder, f"{op}-feasible"))
    timed = [row for row in rows if row.get("mode") == XLA_CPU and row["xla_us"]]
    if timed:
        points = [(row["op"], row["model"], *_point(row, row["xla_us"]), row["ceiling_gbps"]) for row in timed]
        roofs = {"read ceiling of this processor, measured in this run": points[-1][-1]}
        title = "XLA's implementation on this processor (no Pallas kernel was timed)"
        lines.append(_save(lambda plt: _roofline(plt, points, roofs, title), folder, "roofline-cpu-xla"))
    return lines


def draw_decode(rows: Sequence[Row], path: str | Path) -> str:
    """Percent of the read ceiling by model and context, the implementations side by side; returns a line about it."""
    counted = [row for row in rows if row["op"] == "decode" and row["status"] == "ok"]
    if not counted:
        return "No picture: no time of decode counts."
    path = Path(path)
    return _save(lambda plt: _bars(plt, counted), path.parent, path.stem)


def _case_title(row: Row) -> str:
    context = f", context {row['context']}" if row["context"] else ""
    return f"{row['model']}, {row['rows']} row{'s' if row['rows'] > 1 else ''}{context}, {row['dtype']}"


def _point(row: Row, us: float) -> tuple[float, float]:
    """(operations per byte, 1e9 operations a second)."""
    case = cases.make(
        row["op"], row["model"], rows=row["rows"], context=row["context"] or 1024, dtype=row["dtype"]
    )  # fmt: skip
    return case.cost.operations / case.cost.bytes, case.cost.operations / us / 1e3


def _save(draw: Callable[[Any], Any], folder: str | Path, name: str) -> str:
    """Draws into FOLDER/NAME.png; returns a line about it. matplotlib is an extra: without it, that line says so."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return f"No picture of {name}: matplotlib is not installed (pip install '.[plot]')."
    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    path = Path(folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = draw(plt)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return f"Picture: {path}"


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
    colours = {op: f"C{i}" for i, op in enumerate(cases.OPS)}
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


def _bars(plt: Any, rows: Sequence[Row]) -> Any:
    """A panel a model, in it a group of bars a context, a bar a batch; plain XLA's share is a line across the bar."""
    panels = list(dict.fromkeys((row["model"], row["dtype"]) for row in rows))
    fused = [row for row in rows if row["implementation"] != "xla"]
    kinds = sorted({(row["implementation"], row["batch"]) for row in fused or rows})
    contexts = sorted({row["context"] for row in rows})
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(max(6.0, 0.42 * len(contexts) * len(kinds) + 2), 3.3 * len(panels)), squeeze=False,
        sharex=True, sharey=True, layout="constrained",
    )  # fmt: skip
    width = 0.86 / len(kinds)

    def place(row, kind):
        return contexts.index(row["context"]) + (kinds.index(kind) - (len(kinds) - 1) / 2) * width

    for axis, (model, dtype) in zip(axes[:, 0], panels):
        here = [row for row in rows if (row["model"], row["dtype"]) == (model, dtype)]
        for i, (name, batch) in enumerate(kinds):
            own = [row for row in here if (row["implementation"], row["batch"]) == (name, batch)]
            heights = [row["percent_of_ceiling"] for row in own]
            bars = axis.bar(
                [place(row, (name, batch)) for row in own], heights, width,
                color=plt.cm.viridis(i / len(kinds)), label=f"{name}, batch {batch}",
            )  # fmt: skip
            axis.bar_label(
                bars, [f"{row['ms_per_token']:.3g} ms" for row in own], fontsize=6.5, rotation=90, padding=3,
                bbox=dict(facecolor="white", edgecolor="none", pad=0.5),
            )  # fmt: skip
            if fused:
                plain = [row for row in here if (row["implementation"], row["batch"]) == ("xla", batch)]
                at, shares = [place(row, (name, batch)) for row in plain], [row["percent_of_ceiling"] for row in plain]
                label = "plain XLA" if i == 0 else None
                axis.hlines(shares, [x - width / 2 for x in at], [x + width / 2 for x in at], color="r", label=label)
        ceilings = [row["ceiling_gbps"] for row in here]
        axis.axhline(100, color="0.3", ls="--", lw=1)
        axis.set_title(
            f"{model}, {dtype}; ceiling of each run {min(ceilings):.0f} to {max(ceilings):.0f} GB/s", fontsize=9
        )
        axis.set_ylabel("% of the read ceiling")
        axis.set_xticks(range(len(contexts)), [f"context {context}" for context in contexts])
    axes[0, 0].set_ylim(0, 1.3 * max(100, *(row["percent_of_ceiling"] for row in rows)))
    axes[0, 0].legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"Decode on {rows[-1]['device']}, {rows[-1]['steps']} steps a sample", fontsize=10)
    return figure
