"""The table and the pictures of servers under load, by what is in them."""

import itertools
import sys

import pytest

from experiments.serve_bench import plots
from experiments.serve_bench.table import groups_of, serve_table


@pytest.fixture
def make_runs(make_record):
    """Records of two servers at three rates, each twice."""

    def make(**fields):
        return [
            make_record("serve", **dict(endpoint=name, rate=rate, seed=seed, ttft_ms_p99=ms + seed) | fields)
            for (name, ms), rate, seed in itertools.product((("vllm", 60.0), ("ours", 30.0)), (1, 2.5, 16), (0, 1))
        ]

    return make


def cells(records):
    header, lines = serve_table(records)
    return [dict(zip(header, map(str, line))) for line in lines]


def test_servers_are_beside_each_other(make_runs):
    found = cells(make_runs())
    assert [(one["requests a second"], one["server"]) for one in found] == [
        (rate, name) for rate in ("1", "2.5", "16") for name in ("ours", "vllm")
    ]
    assert found[0]["TTFT ms p50, p95, p99"] == "10.0, 20.0, 30.5", "the median of two runs"
    assert found[0]["load"] == "chat, 1024 in, 128 out; poisson" and found[0]["runs"] == "2"
    assert "status" not in found[0] and "tokens at once" not in found[0]


def test_a_run_that_was_made_again_takes_the_place_of_the_first(make_record):
    again = make_record("serve", ttft_ms_p50=99.0, date="2027-01-01T00:00:00Z")
    (found,) = cells([again, make_record("serve")])
    assert found["TTFT ms p50, p95, p99"].startswith("99.0") and found["runs"] == "1"


def test_what_does_not_count_is_told(make_record):
    late = "void: the client was 30.0 ms late (p99), of the 20 that it may"
    one, other = cells([
        make_record("serve", status=late, ttft_ms_p50=1.0, errors=3),
        make_record("serve", seed=1),
        make_record("serve", status=late, rate=8.0),
    ])  # fmt: skip
    assert (one["TTFT ms p50, p95, p99"], one["runs"], one["status"]) == ("10.0, 20.0, 30.0", "1 of 2", late)
    assert one["errors, rejected"] == "3, 0"
    assert (other["TTFT ms p50, p95, p99"], other["runs"], other["goodput/s"]) == ("-, -, -", "0 of 1", "-")


def test_what_long_prompts_cost_has_a_column(make_record):
    alone, both = cells([make_record("serve", mix="both", ttft_p95_ratio=1.75), make_record("serve")])
    assert alone["TTFT p95 with long / without"] == "-" and both["TTFT p95 with long / without"] == "1.75"
    assert both["load"] == "chat, 1024 in, 128 out; long, 30000 in, 16 out every 4 s; poisson"


def test_tokens_that_come_together_have_a_column(make_record):
    one, other = cells([make_record("serve", tokens_at_once_mean=4.0), make_record("serve", rate=8.0)])
    assert (one["tokens at once"], other["tokens at once"]) == ("4.00", "1.00")


def test_loads_differ_by_what_is_asked(make_record):
    closed = dict(arrivals="closed", rate=None, concurrency=8)
    found = groups_of([
        make_record("serve"), make_record("serve", chat_input=20), make_record("serve", **closed),
        make_record("serve", **closed | dict(concurrency=1)), make_record("serve", arrivals="bursty", burst=8),
    ])  # fmt: skip
    assert len({group.load for group in found}) == 4 and len(found) == 5
    assert [group.amount for group in found if group.first["arrivals"] == "closed"] == [1, 8]


@pytest.fixture
def drawn(monkeypatch):
    """Draws pictures and returns the figures by name, of which no file is made."""
    plt = pytest.importorskip("matplotlib.pyplot")
    figures = {}

    def keep(draw, folder, name):
        figures[name] = draw(plt)
        return f"Picture: {folder}/{name}.png"

    monkeypatch.setattr(plots, "save", keep)
    yield figures
    plt.close("all")


def test_a_picture_a_mix_and_two_lines_a_server(make_runs, make_record, drawn):
    void = make_record("serve", status="void: late", rate=99.0)
    records = [*make_runs(), void, make_record("serve", mix="both")]
    assert plots.draw_serve(records, "out") == ["Picture: out/serve-chat.png", "Picture: out/serve-both.png"]
    first, second = drawn["serve-chat"].axes
    assert first.get_title() == "to the first token" and first.get_xlabel() == "requests a second"
    lines = {line.get_label(): [tuple(point) for point in line.get_xydata()] for line in first.lines}
    assert lines["ours, p99"] == [(1, 30.5), (2.5, 30.5), (16, 30.5)]
    assert lines["vllm, p99"] == [(1, 60.5), (2.5, 60.5), (16, 60.5)]
    assert lines["ours, p50"] == [(1, 10), (2.5, 10), (16, 10)]
    assert set(lines) == {"ours, p99", "ours, p50", "vllm, p99", "vllm, p50", "objective"}
    assert [text.get_text() for text in first.get_xticklabels()] == ["1", "2.5", "16"]
    assert [row.get_suptitle() for row in drawn["serve-chat"].subfigs] == [
        "ragged: chat, 1024 in, 128 out; poisson; void runs, left out: 1"
    ]
    assert {line.get_ydata()[0] for line in second.lines} == {5.0, 4.0, 50.0}


def test_a_row_of_panels_a_load(make_runs, drawn):
    plots.draw_serve([*make_runs(), *make_runs(chat_input=20)], "out")
    assert len(drawn["serve-chat"].axes) == 4


def test_figures_that_are_not_there_are_not_drawn(make_record, drawn):
    none = dict(ttft_ms_p50=None, itl_ms_p99=None, tpot_ms_p50=None, slo_tpot_ms=None)
    plots.draw_serve([make_record("serve", **none)], "out")
    first, second = drawn["serve-chat"].axes
    assert [line.get_label() for line in first.lines] == ["ours, p99", "objective"] and not second.lines


def test_nothing_that_counts(make_runs, tmp_path):
    assert plots.draw_serve(make_runs(status="void: late"), tmp_path) == ["No picture: no run of a server counts."]
    assert list(tmp_path.iterdir()) == []


def test_the_same_records_make_the_same_file(make_runs, tmp_path):
    pytest.importorskip("matplotlib")
    records = make_runs()
    for folder, shown in (("a", records), ("b", records[::-1])):
        assert plots.draw_serve(shown, tmp_path / folder) == [f"Picture: {tmp_path / folder / 'serve-chat.png'}"]
    one, other = ((tmp_path / folder / "serve-chat.png").read_bytes() for folder in "ab")
    assert one == other and one.startswith(b"\x89PNG")


def test_without_matplotlib(make_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "matplotlib is not installed" in plots.draw_serve(make_runs(), tmp_path)[0]
