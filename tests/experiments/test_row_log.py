"""The results file: appending, resuming, repairing, refusing."""

import contextlib
import gc
import json
import signal
import sys

import pytest

from experiments import row_log
from experiments.row_log import Log, ResultsError


def lines(path):
    return path.read_text().splitlines()


def test_rows_are_there_as_soon_as_they_are_appended(tmp_path, make_row):
    path = tmp_path / "deep" / "rows.jsonl"
    log = Log(path)
    log.append(make_row())
    assert row_log.read(path) == [make_row()]  # before it is closed
    log.close()


def test_identity(tmp_path, make_row):
    with Log(tmp_path / "rows.jsonl") as log:
        log.append(make_row())
        assert make_row(median_us=99.0, date="later", commit="other") in log
        for field, value in dict(
            mode="interpret", op="down", rows=2, context=8, dtype="f16", tiles={}, device="NVIDIA H100", jax="0.12.0",
            kernels="ffffffffffff",
        ).items():  # fmt: skip
            assert make_row(**{field: value}) not in log, field


@pytest.mark.parametrize("cut", [1, 20, -2])
def test_a_half_written_last_line_is_left_out_and_repaired(tmp_path, make_row, cut):
    path = tmp_path / "rows.jsonl"
    whole = json.dumps(make_row()) + "\n"
    path.write_text(whole + json.dumps(make_row(rows=2))[:cut])
    assert row_log.read(path) == [make_row()]
    with Log(path) as log:
        assert log.rows == [make_row()]
        log.append(make_row(rows=3))
    assert row_log.read(path) == [make_row(), make_row(rows=3)]
    assert len(lines(path)) == 2


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path, make_row):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(make_row()))
    with Log(path) as log:
        log.append(make_row(rows=2))
    assert row_log.read(path) == [make_row(), make_row(rows=2)]


@pytest.mark.parametrize("bad", ["{broken\n", "[1, 2]\n", '{"op": "out"}\n', "nonsense\n"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_corrupt_line_is_an_error_that_names_it(tmp_path, make_row, bad, at):
    path = tmp_path / "rows.jsonl"
    whole = [json.dumps(make_row()) + "\n"]
    whole.insert(at, bad)
    path.write_text("".join(whole))
    before = path.read_bytes()
    for opened in (row_log.read, Log):
        with pytest.raises(ResultsError, match=rf"rows.jsonl:{at + 1}: expected"):
            opened(path)
    assert path.read_bytes() == before


def test_blank_lines_do_no_harm(tmp_path, make_row):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(make_row()) + "\n\n")
    assert row_log.read(path) == [make_row()]


def test_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError):
        Log(tmp_path / "file" / "rows.jsonl")
    with pytest.raises(ResultsError):
        Log(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_that_was_swallowed_comes_with_the_next_row(error, tmp_path, make_row, monkeypatch):
    before, reported = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))
    hook = sys.unraisablehook

    def callback(phase, info):
        """As a library's: Python reports what it raises, and goes on."""
        if phase == "start" and error is KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
        elif phase == "start":
            raise error

    with Log(tmp_path / "rows.jsonl") as log:
        gc.callbacks.append(callback)
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(callback)
        with pytest.raises(KeyboardInterrupt) if error is KeyboardInterrupt else contextlib.nullcontext():
            log.append(make_row())
    assert reported == ([] if error is KeyboardInterrupt else [error]), "other errors are reported as ever"
    assert signal.getsignal(signal.SIGINT) is before and sys.unraisablehook is hook
    assert len(row_log.read(tmp_path / "rows.jsonl")) == 1
