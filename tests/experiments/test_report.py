"""The README's tables."""

import json

import pytest

from experiments import report

EMPTY = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nMore.\n"


@pytest.fixture
def files(tmp_path):
    """Writes the README and results, and runs the command on them."""
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(EMPTY)
    results.mkdir()

    def run(*arguments, rows=None):
        if rows is not None:
            (results / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return report.main(
            ["--readme", str(readme), "--ledger", str(tmp_path / "LEDGER.md"), "--results", str(results), *arguments]
        )

    return readme, results, run


def layer_row(make_row, **fields):
    row = make_row(op="layer", model="llama-3.1-8b", context=1024, median_us=110.0, p10_us=109.0, p90_us=111.0)
    row = row | dict(
        bytes=440_000_000,
        implementation="triton",
        launches=5,
        prefetch_bytes=8192,
        beyond_bytes_us_per_launch=1.25,
        **fields,
    )
    del row["mode"], row["tiles"], row["status"]
    return row


def test_no_results(files):
    readme, _, run = files
    assert run("--check") == 1 and readme.read_text() == EMPTY
    assert run() == 0 and run("--check") == 0
    assert "No results of a GPU" in readme.read_text() and "old" not in readme.read_text()
    assert readme.read_text().startswith("# Title\n") and readme.read_text().endswith("\n\nMore.\n")


def test_tables(files, make_row, capsys):
    readme, _, run = files
    slow = dict(make_row()["tiles"], block_n=8)
    rows = [
        make_row(),
        make_row(tiles=slow, median_us=12.0),
        make_row(op="attention", context=1024, tiles=dict(block_s=32, splits=8, num_warps=4, num_stages=2)),
        make_row(tiles=dict(slow, block_n=16), status="compile failed: x", median_us=None),
        make_row(mode="interpret", device="cpu", status="ok (interpret, not timed)", median_us=None),
        make_row(mode="xla-cpu", device="cpu", median_us=None, xla_us=99999.0, tiles=None),
        layer_row(make_row),
    ]
    assert run(rows=rows) == 0
    text = readme.read_text()
    assert "### NVIDIA H200" in text and "### cpu" not in text and "99999" not in text
    assert "| out | tiny | 1 |  | 10.00 (9.50 to 10.50) | 1000 | 25.0 | 20.00 | 2.00 | 1.0e-03 (1.0e-03) |" in text
    assert "| attention | tiny | 1 | 1024 |" in text and "block_s=32 splits=8" in text
    assert "12.00" not in text and "4 were tried, 3 of them ran" in text
    assert "| llama-3.1-8b | 1 | 1024 | triton | 8 | 110.00 (109.00 to 111.00) | 4000 | 100.0 | 5 | 1.25 |" in text
    for part in ("driver 580.1", "jax 0.11.2", "commit cccccccccccc", "2026-01-02", "`python -m experiments.sweep`"):
        assert part in text
    assert run("--check") == 0
    assert run("--check", rows=[make_row(median_us=11.0)]) == 1
    assert "out of date" in capsys.readouterr().err
    assert run() == 0 and "11.00" in readme.read_text()


def test_a_failed_yardstick_or_absent_numbers(files, make_row):
    _, _, run = files
    assert run(rows=[make_row(xla_us=None, commit=None, driver=None)]) == 0


def test_mistakes_are_one_line(files, capsys):
    readme, results, run = files
    (results / "bad.jsonl").write_text("nonsense\n")
    assert run() == 2 and readme.read_text() == EMPTY
    (results / "bad.jsonl").unlink()
    readme.write_text("no markers")
    assert run() == 2
    readme.unlink()
    assert run() == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 3 and "bad.jsonl:1" in err[0] and "results:begin" in err[1] and "readme" in err[2]


def test_the_ledger_is_a_page_of_its_own(files, make_row, tmp_path):
    readme, _, run = files
    row = dict(
        op="ledger", model="llama-3.2-1b", dtype="bf16", batch=1, rows=1, context=1024, lever="", strategy="",
        without="", tried=False, status="ok", ms_per_token=0.8, ms_p5=0.79, ms_p95=0.81, gain_us=None,
        predicted_us=0.0, predicted_bytes=0, predicted_launches=0, drift=0.02, drift_kl=1e-4, drift_max=0.1,
        tokens_checked=10, tokens_as_shipped=10, device="NVIDIA H200", date="2026-01-01",
        command="python -m experiments.ledger", commit="abc",
    )  # fmt: skip
    less = row | dict(lever="loop", strategy="parallel scheduling", without="none", gain_us=12.5, predicted_us=10.0)
    counted = row | dict(
        op="counters", implementation="triton", kernel="qkv", calls=16, read_bytes=2_000_000, written_bytes=1000,
        alone_us=7.0, step_bytes=1_900_000, step_read_bytes=2_000_000,
    )  # fmt: skip
    counted.pop("lever")  # as in rows of before
    more = counted | dict(lever="loop", read_bytes=5_000_000)
    assert run(rows=[row, less, counted, more]) == 0
    page = (tmp_path / "LEDGER.md").read_text()
    assert "| llama-3.2-1b | 1 |  | as shipped |  | 0.800 (0.790 to 0.810) | - | - |" in page
    assert "| 12.5 | - | 10 |  |  | 3.00 | 2.00e-02 |" in page and "`python -m experiments.ledger`" in page
    assert "| llama-3.2-1b | triton |  | 1024 | 1.9 | 2.0 | 105.3 | 0.0 | qkv 2.0 |" in page
    assert "as shipped" not in readme.read_text()
    assert run("--check") == 0
    (tmp_path / "LEDGER.md").write_text("")
    assert run("--check") == 1
