"""The pictures, by what is in them and whether they are there."""

import itertools
import sys

import pytest

from experiments import plots
from pallas_kernels.common.devices import DEVICES

pytest.importorskip("matplotlib")


def test_best_cells(make_row):
    tile = make_row()["tiles"]
    rows = [
        make_row(),
        make_row(tiles=dict(tile, num_warps=8), achieved_gbps=1500.0),
        make_row(tiles=dict(tile, num_warps=2), achieved_gbps=None, status="compile failed: x"),
        make_row(tiles=dict(tile, block_n=8), achieved_gbps=None, status="infeasible: x"),
    ]
    assert plots.best_cells(rows, "out") == {(4, 256): 1500.0, (8, 256): None}


def test_pictures_of_a_gpu(make_row, tmp_path):
    tile = make_row()["tiles"]
    rows = [
        make_row(),
        make_row(tiles=dict(tile, block_n=8), status="infeasible: x", achieved_gbps=None, median_us=None),
        make_row(model="llama-3.2-1b"),
        make_row(op="attention", context=80, tiles=dict(block_s=16, splits=4, num_warps=4, num_stages=1)),
    ]
    lines = plots.draw_gpu(rows, tmp_path, DEVICES["h200"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention.png", "out.png", "roofline.png"]
    assert len(lines) == 3 and all(path.stat().st_size > 5000 for path in tmp_path.iterdir())
    assert plots.draw_gpu([], tmp_path, DEVICES["h200"]) == ["No pictures: no tile was measured."]


def test_nothing_ran(make_row, tmp_path):
    rows = [make_row(status="compile failed: x", achieved_gbps=None, median_us=None)]
    plots.draw_gpu(rows, tmp_path, DEVICES["h200"])
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_without_matplotlib(make_row, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (line, *_) = plots.draw_gpu([make_row()], tmp_path, DEVICES["h200"])
    assert "matplotlib is not installed" in line and list(tmp_path.iterdir()) == []


def test_a_panel_a_model_and_a_bar_a_batch():
    plt = pytest.importorskip("matplotlib.pyplot")
    rows = [
        dict(
            model=model, dtype="bf16", batch=batch, context=context, implementation=name, percent_of_ceiling=share,
            ms_per_token=0.5, ceiling_gbps=4000.0, device="NVIDIA H200", steps=127,
        )
        for model in ("a", "b")
        for batch in (1, 2, 16)
        for context in (128, 1024)
        for name, share in (("triton", 80.0), ("xla", 50.0))
    ]  # fmt: skip
    figure = plots._bars(plt, rows)
    panels = figure.axes
    assert [panel.get_title().split(",")[0] for panel in panels] == ["a", "b"]
    for panel in panels:
        assert sorted(bar.get_height() for bar in panel.patches) == [80.0] * 6
        lines = [line for lines in panel.collections for line in lines.get_segments()]
        assert len(lines) == 6 and {y for line in lines for _, y in line} == {50.0}
        middles = sorted(bar.get_x() + bar.get_width() / 2 for bar in panel.patches)
        assert all(b - a > 0.2 for a, b in itertools.pairwise(middles)), "no bar hides another"
    plt.close(figure)
    alone = plots._bars(plt, [row for row in rows if row["implementation"] == "xla"])
    assert len(alone.axes[0].patches) == 6 and not alone.axes[0].collections
    plt.close(alone)
