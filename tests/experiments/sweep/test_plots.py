"""The pictures of a sweep, by what is in them and whether they are there."""

import dataclasses
import sys

import pytest

import pallas_kernels as pk
from experiments.bench import cases, pictures
from experiments.sweep import plots

plt = pytest.importorskip("matplotlib.pyplot")


def test_best_cells(make_record):
    tile = make_record()["tiles"]
    records = [
        make_record(),
        make_record(tiles=dict(tile, num_warps=8), achieved_gbps=1500.0),
        make_record(tiles=dict(tile, num_warps=2), achieved_gbps=None, status="compile failed: x"),
        make_record(tiles=dict(tile, block_n=8), achieved_gbps=None, status="infeasible: x"),
        make_record(tiles=dict(tile, block_n=8, num_warps=2), achieved_gbps=9000.0, status="wrong: x"),
    ]
    assert plots.best_cells(records, "out") == {(4, 256): 1500.0, (8, 256): None}


def test_feasible_cells(make_options):
    """Of the tiles in a cell the share that a GPU can run; they are all of the search space."""
    case = cases.make("out", "llama-3.1-8b", rows=8)
    found = plots.feasible_cells(case, make_options(), pk.DEVICES["a100"])
    space = case.known.search_space(case.shape)
    assert set(found) == {(tiles.block_n, tiles.block_k) for tiles in space}
    for (block_n, block_k), share in found.items():
        cell = [tiles for tiles in space if (tiles.block_n, tiles.block_k) == (block_n, block_k)]
        fit = sum(bool(case.known.feasible(tiles, case.shape, pk.DEVICES["a100"])) for tiles in cell)
        assert share == (100 * fit / len(cell) if fit else None)
    assert any(share != 100 for share in found.values())


def test_a_map_has_a_panel_a_case_and_a_number_a_cell():
    panels = {"one": {(2, 64): 10.0, (4, 64): 30.0, (4, 128): None}, "two": {(2, 64): 5.0}}
    figure = plots.heat_maps(plt, panels, "title", plots.axes_of("out"))
    one, two = figure.axes
    assert (one.get_title(), two.get_title(), figure.get_suptitle()) == ("one", "two", "title")
    assert (one.get_ylabel(), one.get_xlabel()) == ("block_n", "block_k")
    assert {text.get_position(): text.get_text() for text in one.texts} == {(0, 0): "10", (0, 1): "30"}
    assert [patch.get_xy() for patch in one.patches] == [(0.5, 0.5)], "hatched where nothing ran"
    assert [text.get_text() for text in one.get_xticklabels()] == ["64", "128"]
    plt.close(figure)
    assert plots.axes_of("attention") == ("block_s", "splits")


@pytest.mark.slow
def test_pictures_of_a_gpu(make_record, tmp_path, device):
    tile = make_record()["tiles"]
    records = [
        make_record(),
        make_record(tiles=dict(tile, block_n=8), status="infeasible: x", achieved_gbps=None, median_us=None),
        make_record(model="llama-3.2-1b"),
        make_record(op="attention", context=80, tiles=ATTENTION),
        make_record("interpreted_tile", op="head"),
    ]
    lines = plots.draw_gpu(records, tmp_path, device)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention.png", "out.png", "roofline.png"]
    assert lines == [f"Picture: {tmp_path / name}.png" for name in ("out", "attention", "roofline")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
    assert plots.draw_gpu(records[-1:], tmp_path, device) == ["No pictures: no tile was measured."]


def test_nothing_ran(make_record, tmp_path, device):
    records = [make_record(status="compile failed: x", achieved_gbps=None, median_us=None)]
    plots.draw_gpu(records, tmp_path, device)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_pictures_without_a_gpu(make_record, make_options, tmp_path, device):
    records = [
        make_record("xla_on_cpu", tiles=None, ceiling_gbps=20.0),
        make_record("xla_on_cpu", tiles=None, op="head", xla_us=None, status="compile failed: x"),
    ]
    options = make_options()
    plots.draw_cpu(records[1:], tmp_path, options, device)
    assert [path.name for path in tmp_path.iterdir()] == ["out-feasible.png"], "without a time there is no roofline"
    plots.draw_cpu(records, tmp_path, options, device)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-feasible.png", "roofline-cpu-xla.png"]


def test_without_matplotlib(make_record, tmp_path, monkeypatch, device):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (line, *_) = plots.draw_gpu([make_record()], tmp_path, device)
    assert "matplotlib is not installed" in line and list(tmp_path.iterdir()) == []


def test_a_picture_leaves_no_figure_open(tmp_path):
    before = plt.get_fignums()
    line = pictures.save(lambda plt: plt.figure(), tmp_path / "deep" / "er", "empty")
    assert line == f"Picture: {tmp_path / 'deep' / 'er' / 'empty.png'}" and plt.get_fignums() == before


@pytest.fixture
def titles(monkeypatch):
    """The titles of all panels of a picture, of which no file is made."""
    found = []

    def keep(draw, folder, name):
        figure = draw(plt)
        found.extend(axis.get_title() for axis in figure.axes)
        plt.close(figure)
        return name

    monkeypatch.setattr(plots, "save", keep)
    return found


ATTENTION = dataclasses.asdict(pk.AttentionTiles(block_s=16, splits=4))


def test_a_panel_names_the_size_of_its_pages(titles, make_record, device, tmp_path):
    records = [make_record(op="attention", context=80, page_size=size, tiles=ATTENTION) for size in (0, 16)]
    plots.draw_gpu(records, tmp_path, device)
    assert titles[:2] == ["ragged, 1 row, context 80, bf16", "ragged, 1 row, context 80 pages of 16, bf16"]


def test_without_a_gpu_too(titles, make_options, device, tmp_path):
    plots.draw_cpu([], tmp_path, make_options(ops=("attention",), page_sizes=(16, 0)), device)
    assert titles == ["ragged, 1 row, context 80 pages of 16, bf16", "ragged, 1 row, context 80, bf16"]
