"""The table of decode: which records count, and that what is void has no figures."""

import pytest

from experiments.bench import tables
from experiments.decode.table import decode_table, newest


@pytest.fixture
def decoded(make_record):
    """A record of the kernels' decode."""

    def make(**fields):
        figures = dict(
            model="llama-3.1-8b", batch=1, context=1024, implementation="triton", ms_per_token=4.0, ms_p5=3.9,
            ms_p95=4.1, xla_ms_per_token=5.0, tokens_per_s=250.0, floor_ms=3.6, ceiling_gbps=4150.0,
            percent_of_ceiling=90.4, samples=20, steps=127,
        )  # fmt: skip
        return make_record("decode", **figures | fields)

    return make


def lines(records):
    """The cells of each line, by the header's names."""
    header, body = decode_table(records)
    return [dict(zip(header, map(str, line), strict=True)) for line in body]


def test_xla_is_a_column_where_another_has_a_time(decoded):
    records = [
        decoded(),
        decoded(implementation="xla", ms_per_token=5.0),
        decoded(context=8192, implementation="xla", ms_per_token=5.5, xla_ms_per_token=5.5),
    ]
    both, alone = lines(records)
    assert both["ms/token (p5 to p95)"] == "4.000 (3.900 to 4.100)" and both["floor ms"] == "3.600"
    assert (both["tokens/s"], both["% of ceiling"], both["XLA ms"], both["times XLA"]) == (
        "250.0", "90.4", "5.000", "1.25",
    )  # fmt: skip
    assert (alone["context"], alone["by"], alone["XLA ms"]) == ("8192", "xla", "5.500")
    assert "by" not in lines(records[:2])[0] and "status" not in both, "what all lines have in common is no column"


def test_xla_of_another_run_where_the_newest_has_none_beside_it(decoded):
    records = [
        decoded(implementation="xla", ms_per_token=6.0, xla_ms_per_token=6.0, date="2026-01-01T00:00:00Z"),
        decoded(xla_ms_per_token=None, date="2026-01-02T00:00:00Z"),
        decoded(batch=8, xla_ms_per_token=None),
    ]
    one, eight = lines(records)
    assert (one["XLA ms"], one["times XLA"], eight["XLA ms"]) == ("6.000", "1.50", "-")


def test_the_newest_record_counts(decoded):
    old = decoded(ms_per_token=9.0, date="2026-01-01T00:00:00Z")
    new = decoded(date="2026-01-02T00:00:00Z")
    for records in ([old, new], [new, old]):
        (line,) = lines(records)
        assert line["ms/token (p5 to p95)"].startswith("4.000")


def test_lines_are_in_the_order_of_their_cases(decoded):
    records = [decoded(context=8192), decoded(batch=8), decoded(), decoded(model="a")]
    order = [(one["model"], one["batch"], one["context"]) for one in newest(records)]
    assert order == [("a", 1, 1024), ("llama-3.1-8b", 1, 1024), ("llama-3.1-8b", 1, 8192), ("llama-3.1-8b", 8, 1024)]


def test_no_figures_of_what_is_void(decoded):
    records = [
        decoded(status="void: the tokens of two runs of a sequence differ"),
        decoded(implementation="xla", ms_per_token=5.0),
        decoded(context=8192, status="compiling failed: x", ms_per_token=None, tokens_per_s=None),
    ]
    void, xla, failed = lines(records)
    for line in (void, failed):
        assert [line[name] for name in ("ms/token (p5 to p95)", "tokens/s", "% of ceiling", "XLA ms", "times XLA")] == [
            "-"
        ] * 5
    assert void["status"] == records[0]["status"] and failed["status"] == "compiling failed: x"
    assert xla["by"] == "xla" and xla["ms/token (p5 to p95)"].startswith("5.000"), "nothing hides it"
    assert "compiling failed: x" in tables.text(*decode_table(records))


def test_the_size_of_pages_is_a_column_where_a_cache_has_them(decoded):
    whole, paged = decoded(), decoded(page_size=64, ms_per_token=4.2)
    assert "page size" not in lines([whole])[0]
    shown = lines([paged, whole])
    assert [(one["page size"], one["ms/token (p5 to p95)"][:5]) for one in shown] == [("-", "4.000"), ("64", "4.200")]
    xla = decoded(page_size=64, implementation="xla", ms_per_token=5.0)
    assert len(lines([whole, paged, xla])) == 2, "a column beside the kernels' of the same pages"
