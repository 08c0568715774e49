"""What is printed of a sweep."""

from experiments.sweep import summary

WINNER = ["out", "ragged", "1", "-", "10.00", "9.50", "10.50", "1000", "25.0", "20.00", "2.00"]


def cells(text, line):
    return text.splitlines()[line].split()


def test_winners(make_record):
    one = make_record()["tiles"]
    records = [
        make_record(tiles=dict(one, block_n=8), median_us=12.0, achieved_gbps=833.3, percent_of_ceiling=20.8),
        make_record(),
        make_record(tiles=dict(one, block_n=2), median_us=40.0),
        make_record(tiles=dict(one, block_n=16), median_us=None, status="compile failed: x"),
        make_record("interpreted_tile", status="ok (interpret, not timed)", tiles=dict(one, block_n=32)),
    ]
    line = cells(summary.winners(records), 2)
    assert line[:16] == [*WINNER, "12.00", "12.00", "40.00", "3", "4"]
    assert line[16:] == ["block_n=4", "block_k=256", "num_warps=4", "num_stages=1"]


def test_a_tile_measured_again_counts_once(make_record):
    line = cells(summary.winners([make_record(median_us=5.0), make_record(median_us=10.0)]), 2)
    assert line[4] == "10.00" and line[14:16] == ["1", "1"]


def test_a_case_of_which_none_ran(make_record):
    text = summary.winners([make_record(status="compile failed: x", median_us=None)])
    assert cells(text, 2)[-4:] == ["0", "1", "none", "ran"]


def test_without_a_yardstick(make_record):
    line = cells(summary.winners([make_record(xla_us=None)]), 2)
    assert line[:12] == [*WINNER[:9], "-", "-", "-"]


def test_failures_by_their_reason(make_record):
    records = [
        make_record(status="infeasible: shared memory: needs 9 bytes"),
        make_record(status="infeasible: shared memory: needs 8 bytes"),
        make_record(status="wrong: relative RMS error 1e-3, at most 2.5e-04 allowed"),
        make_record(),
        make_record("interpreted_tile", status="run failed: x"),
    ]
    assert summary.failures(records).splitlines() == [
        "Tiles without a time:",
        "      2  infeasible: shared memory: needs N bytes",
        "      1  wrong: relative RMS error N, at most N allowed",
    ]
    assert summary.failures([make_record()]) == ""


def test_without_a_gpu_a_table_a_stage(make_record):
    reasons = dict(feasible=1, of=3, reasons={"shared memory": 2})
    records = [
        make_record("feasible_tiles", tiles=None, feasible=dict(h200=dict(feasible=3, of=3, reasons={}), a100=reasons)),
        make_record("lowered_tile", status="ok (lowered for CUDA, not run)"),
        make_record("lowered_tile", status="lowering failed: x", tiles=dict(block_n=2)),
        make_record("interpreted_tile", status="ok (interpret, not timed)", error=0.5, error_xla=0.25),
        make_record("interpreted_tile", status="wrong: x", tiles=dict(block_n=2)),
        make_record("xla_on_cpu", tiles=None, xla_us=1000.0, ceiling_gbps=40.0),
    ]
    feasible, lowered, checked, xla = summary.without_gpu(records).strip().split("\n\n")
    assert cells(feasible, 3) == ["out", "ragged", "1", "-", "bf16", "3", "of", "3", "1", "of", "3"]
    assert feasible.endswith("Why not, tiles in all: a100: shared memory 2")
    assert "1 of a sample of 2 tiles" in lowered
    assert lowered.endswith("\n  out ragged rows=1 block_n=2: lowering failed: x")
    assert cells(checked, 3) == ["out", "ragged", "1", "-", "bf16", "1", "2", "0.5", "0.25"]
    assert checked.endswith("\n  out ragged rows=1 block_n=2: wrong: x")
    # 10 MB in a millisecond
    assert cells(xla, 3) == ["out", "ragged", "1", "-", "bf16", "1000", "10.00", "40.00", "25.0"]
    assert summary.without_gpu(records[3:4]).strip().startswith("Tiles run in Pallas's interpreter")


def test_of_many_failures_ten_are_told(make_record):
    tried = [make_record("lowered_tile", status="lowering failed: x", tiles=dict(block_n=n)) for n in range(1, 13)]
    text = summary.without_gpu(tried)
    assert text.count("lowering failed") == 10 and text.strip().endswith("and 2 more")


def test_a_paged_case_names_the_size_of_its_pages(make_record):
    tiles = dict(block_s=16, splits=4)
    records = [make_record(op="attention", context=80, page_size=size, tiles=tiles) for size in (0, 16)]
    whole, paged = summary.winners(records).splitlines()[2:]
    assert whole.split()[:5] == ["attention", "ragged", "1", "80", "10.00"]
    assert "  80 pages of 16  " in paged
    checked = make_record("interpreted_tile", status="ok (interpret, not timed)", op="attention", tiles=tiles)
    assert "  80 pages of 16  " in summary.without_gpu([checked | dict(context=80, page_size=16)])
