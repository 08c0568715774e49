"""The values in the printed tables."""

from experiments import tables

WINNER = ["out", "tiny", "1", "-", "10.00", "9.50", "10.50", "1000", "25.0", "20.00", "2.00"]


def cells(text, line):
    return text.splitlines()[line].split()


def test_winners(make_row):
    one = make_row()["tiles"]
    rows = [
        make_row(tiles=dict(one, block_n=8), median_us=12.0, achieved_gbps=833.3, percent_of_ceiling=20.8),
        make_row(),
        make_row(tiles=dict(one, block_n=2), median_us=40.0),
        make_row(tiles=dict(one, block_n=16), median_us=None, status="compile failed: x"),
        make_row(mode="interpret", status="ok (interpret, not timed)", median_us=1.0),
    ]
    line = cells(tables.winners(rows), 2)
    assert line[:16] == [*WINNER, "12.00", "12.00", "40.00", "3", "4"]
    assert line[16:] == ["block_n=4", "block_k=256", "num_warps=4", "num_stages=1"]


def test_a_tile_measured_again_counts_once(make_row):
    assert [row["median_us"] for row in tables.timed([make_row(median_us=5.0), make_row(median_us=6.0)])] == [6.0]
    assert tables.timed([make_row(median_us=5.0), make_row(status="wrong: x")]) == []


def test_a_case_of_which_none_ran(make_row):
    text = tables.winners([make_row(status="compile failed: x", median_us=None)])
    assert cells(text, 2)[-4:] == ["0", "1", "none", "ran"]


def test_failures(make_row):
    rows = [
        make_row(status="infeasible: shared memory: needs 9 bytes"),
        make_row(status="infeasible: shared memory: needs 8 bytes"),
        make_row(),
    ]
    assert "2  infeasible: shared memory: needs N bytes" in tables.failures(rows)
    assert tables.failures([make_row()]) == ""


def test_columns_are_aligned():
    text = tables.text(("name", "us"), [("a", tables.number(1.0)), ("bcd", tables.number(None))])
    assert text.splitlines() == ["name    us", "----------", "a     1.00", "bcd      -"]


def test_tiles_text():
    assert tables.tiles_text(dict(block_n=2, mma=False)) == "block_n=2"
    assert tables.tiles_text(dict(block_n=2, mma=True)) == "block_n=2 mma"
