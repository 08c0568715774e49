"""The picture of decode, by what is in it."""

import itertools
import sys

import pytest

from experiments.decode import plots

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture
def drawn(monkeypatch):
    """Draws a picture and returns its figure, of which no file is made."""
    figures = []

    def keep(draw, folder, name):
        figures.append(draw(plt))
        return f"Picture: {folder / name}.png"

    def run(records, peers=()):
        with monkeypatch.context() as patch:
            patch.setattr(plots, "save", keep)
            assert plots.draw_decode(records, "out/decode.png", peers) == "Picture: out/decode.png"
        return figures[-1]

    yield run
    for figure in figures:
        plt.close(figure)


@pytest.fixture
def make_steps(make_record):
    """Records of two models, two contexts and three batches, by the kernels and by XLA."""

    def make(**fields):
        return [
            make_record(
                "decode", **dict(model=model, batch=batch, context=context, implementation=name, steps=127,
                ms_per_token=0.5, floor_ms=0.4, percent_of_ceiling=share) | fields,
            )
            for model in ("a", "b")
            for batch in (1, 2, 16)
            for context in (128, 1024)
            for name, share in (("triton", 80.0), ("xla", 50.0))
        ]  # fmt: skip

    return make


def marks(panel):
    """The points of a panel; a line across it is none."""
    return [
        tuple(point) for line in panel.lines if line.get_marker() not in ("None", None) for point in line.get_xydata()
    ]


def test_a_panel_a_model_and_a_bar_a_batch(drawn, make_steps):
    figure = drawn(make_steps())
    panels = figure.axes
    assert [panel.get_title().split(",")[0] for panel in panels] == ["a", "b"]
    for panel in panels:
        assert sorted(bar.get_height() for bar in panel.patches) == [80.0] * 6
        lines = [line for lines in panel.collections for line in lines.get_segments()]
        assert len(lines) == 6 and {y for line in lines for _, y in line} == {50.0}
        middles = sorted(bar.get_x() + bar.get_width() / 2 for bar in panel.patches)
        assert all(b - a > 0.2 for a, b in itertools.pairwise(middles)), "no bar hides another"
    assert [text.get_text() for text in panels[-1].get_xticklabels()] == ["context 128", "context 1024"]
    names = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert sorted(names) == ["plain XLA", "triton, batch 1", "triton, batch 16", "triton, batch 2"]


def test_xla_alone_has_the_bars(drawn, make_steps):
    figure = drawn([found for found in make_steps() if found["implementation"] == "xla"])
    assert len(figure.axes[0].patches) == 6 and not figure.axes[0].collections


def test_other_engines_are_marks_at_the_cases_that_they_share(drawn, make_steps, make_record):
    case = dict(model="a", batch=1, context=1024, dtype="bf16", implementation="vllm", engine="vllm", steps=127)
    peers = [
        make_record("peer", **case, ms_per_token=0.8),
        make_record("peer", **case, ms_per_token=1.0),
        make_record("peer", **case | dict(batch=4), ms_per_token=0.1),
        make_record("peer", **case | dict(model="c"), ms_per_token=0.1),
        make_record("peer", **case, ms_per_token=0.1, status="failed"),
        make_record("peer", **case, ms_per_token=0.1, device="NVIDIA H100"),
    ]
    one, other = drawn(make_steps(), peers).axes
    # The floor of 0.4 ms by what vLLM took; drawn on the first bar of the second group.
    first = min(bar.get_x() + bar.get_width() / 2 for bar in one.patches if bar.get_x() > 0.5)
    assert sorted(marks(one)) == [pytest.approx((first, 40.0)), pytest.approx((first, 50.0))]
    assert marks(other) == []
    assert "vLLM" in [text.get_text() for text in one.get_legend().get_texts()]


def test_the_share_of_the_ceiling_that_others_reach(make_record):
    step = make_record("decode", context=1024, floor_ms=0.4)
    peers = [
        make_record("peer", context=1024, engine=engine, ms_per_token=ms)
        for engine, ms in (("vllm", 0.8), ("torch", 0.5), ("vllm", 1.0))
    ]
    assert plots.peer_shares(step, peers) == dict(vllm=[50.0, 40.0], torch=[80.0])
    assert plots.peer_shares(step | dict(batch=2), peers) == {}


def test_only_what_counts_is_drawn(drawn, make_steps, tmp_path):
    void = make_steps(status="void: tokens differ")
    assert plots.draw_decode(void, tmp_path / "decode.png") == "No picture: no time of decode counts."
    assert list(tmp_path.iterdir()) == []
    counted = [found for found in make_steps() if found["model"] == "b"]
    assert len(drawn([*void, *counted]).axes) == 1


def test_a_file_is_made(make_steps, tmp_path):
    line = plots.draw_decode(make_steps(), tmp_path / "deep" / "decode.png")
    assert line == f"Picture: {tmp_path / 'deep' / 'decode.png'}"
    assert (tmp_path / "deep" / "decode.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(make_steps, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "matplotlib is not installed" in plots.draw_decode(make_steps(), tmp_path / "decode.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "other, name",
    [(dict(page_size=64), "triton, batch 1 pages of 64"), (dict(kv_dtype="int8"), "triton, batch 1, int8")],
)
def test_other_caches_have_bars_of_their_own(drawn, make_steps, other, name):
    figure = drawn([*make_steps(), *make_steps(**other)])
    panel = figure.axes[0]
    middles = sorted(bar.get_x() + bar.get_width() / 2 for bar in panel.patches)
    assert len(middles) == 12 and all(b - a > 0.1 for a, b in itertools.pairwise(middles)), "no bar hides another"
    names = [text.get_text() for text in panel.get_legend().get_texts()]
    assert "triton, batch 1" in names and name in names
    lines = [line for lines in panel.collections for line in lines.get_segments()]
    assert len(lines) == 12
