"""A results file: appending, resuming, repairing, refusing."""

import contextlib
import gc
import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from experiments.bench import log as logs
from experiments.bench.errors import ResultsError
from experiments.bench.log import Log


def lines(path):
    return path.read_text().splitlines()


def test_records_are_there_as_soon_as_they_are_appended(tmp_path, make_record):
    path = tmp_path / "deep" / "records.jsonl"
    log = Log(path)
    log.append(make_record())
    assert logs.read(path) == [make_record()]  # before it is closed
    log.close()


def test_what_is_there_already(tmp_path, make_record):
    with Log(tmp_path / "records.jsonl") as log:
        assert make_record() not in log
        log.append(make_record())
        assert make_record(median_us=99.0, date="later", commit="other") in log
        assert make_record(rows=2) not in log
    with Log(tmp_path / "records.jsonl") as log:
        assert make_record(median_us=99.0) in log, "of a file that was there before"


@pytest.mark.parametrize("cut", [1, 20, -2])
def test_a_half_written_last_line_is_left_out_and_repaired(tmp_path, make_record, cut):
    path = tmp_path / "records.jsonl"
    whole = json.dumps(make_record()) + "\n"
    path.write_text(whole + json.dumps(make_record(rows=2))[:cut])
    assert logs.read(path) == [make_record()]
    with Log(path) as log:
        assert log.records == [make_record()]
        log.append(make_record(rows=3))
    assert logs.read(path) == [make_record(), make_record(rows=3)]
    assert len(lines(path)) == 2


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path, make_record):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(make_record()))
    with Log(path) as log:
        log.append(make_record(rows=2))
    assert logs.read(path) == [make_record(), make_record(rows=2)]


@pytest.mark.parametrize("bad", ["{broken\n", "[1, 2]\n", '{"op": "out"}\n', "nonsense\n", "7\n"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_corrupt_line_is_an_error_that_names_it(tmp_path, make_record, bad, at):
    path = tmp_path / "records.jsonl"
    whole = [json.dumps(make_record()) + "\n"]
    whole.insert(at, bad)
    path.write_text("".join(whole))
    before = path.read_bytes()
    for opened in (logs.read, Log):
        with pytest.raises(ResultsError, match=rf"records.jsonl:{at + 1}: (kind: )?expected"):
            opened(path)
    assert path.read_bytes() == before


def test_blank_lines_do_no_harm(tmp_path, make_record):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(make_record()) + "\n\n")
    assert logs.read(path) == [make_record()]


@pytest.mark.parametrize(
    "change, problem",
    [
        (dict(speed=1), "speed: not a field of kind tile"),
        (dict(batch=1), "batch: not a field of kind tile"),
        (dict(samples="15"), 'samples: expected a whole number, got "15"'),
        (dict(samples=1.5), "samples: expected a whole number, got 1.5"),
        (dict(samples=True), "samples: expected a whole number, got true"),
        (dict(median_us="fast"), 'median_us: expected a positive number, got "fast"'),
        (dict(median_us=0), "median_us: expected a positive number, got 0"),
        (dict(median_us=float("nan")), "median_us: expected a positive number, got NaN"),
        (dict(bytes=10**400), "bytes: expected a positive number, got 1000"),
        (dict(samples=-1), "samples: expected a whole number, got -1"),
        (dict(rows=0), "rows: expected a whole number of at least 1, got 0"),
        (dict(dtype="int8"), 'dtype: expected one of bf16, f16, f32, got "int8"'),
        (dict(tiles=[]), "tiles: expected a table of whole numbers and flags, got []"),
        (dict(tiles=dict(block_n="4")), 'tiles: expected a table of whole numbers and flags, got {"block_n": "4"}'),
        (
            dict(tiles=dict(block_n=4)),
            "tiles: expected block_n, block_k, num_warps, num_stages, mma",
        ),
        (dict(clocks=dict(sm_mhz="fast")), "clocks: expected a table of whole numbers, got "),
        (dict(dirty=0), "dirty: expected true or false, got 0"),
        (dict(median_us=None), "median_us: expected a positive number, got null"),
        (dict(date=None), "date: expected text, got null"),
        (dict(device=None), "device: expected text, got null"),
        (dict(status=None), "status: expected text, got null"),
        (dict(kind="tiles"), "kind: expected one of tile, "),
        (dict(kind=None), "kind: expected one of tile, "),
        (dict(kind=["tile"]), "kind: expected one of tile, "),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(tmp_path, make_record, change, problem):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(make_record()) + "\n" + json.dumps(make_record() | change) + "\n")
    for opened in (logs.read, Log):
        with pytest.raises(ResultsError) as raised:
            opened(path)
        assert str(raised.value).startswith(f"{path}:2: {problem}")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("field", ["kind", "op", "median_us", "device", "date"])
def test_a_missing_field_is_named_with_file_and_line(tmp_path, make_record, field):
    path, found = tmp_path / "records.jsonl", make_record()
    del found[field]
    path.write_text(json.dumps(make_record()) + "\n\n" + json.dumps(found) + "\n")
    with pytest.raises(ResultsError) as raised:
        logs.read(path)
    assert str(raised.value).startswith(f"{path}:3: {field}: ")


def test_a_record_with_a_wrong_field_is_not_appended(tmp_path, make_record):
    with Log(tmp_path / "records.jsonl") as log:
        log.append(make_record())
        with pytest.raises(ResultsError, match="samples: expected a whole number"):
            log.append(make_record(rows=2) | dict(samples="15"))
        assert log.records == [make_record()] and make_record(rows=2) not in log
    assert logs.read(tmp_path / "records.jsonl") == [make_record()]


def test_no_file_has_no_records(tmp_path):
    assert logs.read(tmp_path / "records.jsonl") == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError):
        Log(tmp_path / "file" / "records.jsonl")
    with pytest.raises(ResultsError):
        Log(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"a line without a newline that is no record", b"some\ntext\n", b'{"entries": []}', b'{"a": 1', b"[1, 2",
        b'{"kind": "house", "op', b"\x80\x03\x00", b"\x00" * (2 << 20), b"[" * 100_000, b"7" * 5000,
    ],
    ids=range(10),
)  # fmt: skip
def test_what_is_no_results_file_is_left_as_it_is(text, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(text)
    for opened in (logs.read, Log):
        with pytest.raises(ResultsError) as raised:
            opened(path)
        assert str(raised.value).startswith(f"{path}:1: ") and len(str(raised.value)) < 400
        assert "\n" not in str(raised.value)
    assert path.read_bytes() == text and list(tmp_path.iterdir()) == [path], "nor is anything written beside it"


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    devices = [path for path in map(Path, ("/dev/full", "/dev/zero")) if path.exists()]
    for path, what in [
        (tmp_path, "a directory"),
        *((at, "a device or a pipe") for at in (tmp_path / "pipe", *devices)),
    ]:
        for opened in (logs.read, Log):
            with pytest.raises(ResultsError, match=f"^{path}: expected a file of results, not {what}$"):
                opened(path)
    with pytest.raises(ResultsError, match="results: expected a path, got ''"):
        Log("")


def test_a_disk_that_is_full_is_one_line_and_the_file_goes_on(tmp_path, make_record):
    path, size = tmp_path / "records.jsonl", len(json.dumps(make_record())) + 1
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Log(path) as log:
        log.append(make_record())
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limit[1]))
        try:
            with pytest.raises(ResultsError, match=r"records\.jsonl: File too large"):
                log.append(make_record(rows=2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    with Log(path) as log:
        assert log.records == [make_record()]
        log.append(make_record(rows=2))
    assert logs.read(path) == [make_record(), make_record(rows=2)]


def test_an_interruption_says_where_the_records_are(tmp_path):
    with pytest.raises(KeyboardInterrupt) as raised, Log(tmp_path / "records.jsonl"):
        raise KeyboardInterrupt
    assert raised.value.__notes__ == [f"{tmp_path / 'records.jsonl'} has every record so far."]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_that_was_swallowed_comes_with_the_next_record(error, tmp_path, make_record, monkeypatch):
    before, reported = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))
    hook = sys.unraisablehook

    def callback(phase, info):
        """As a library's: Python reports what it raises, and goes on."""
        if phase == "start" and error is KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
        elif phase == "start":
            raise error

    with Log(tmp_path / "records.jsonl") as log:
        gc.callbacks.append(callback)
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(callback)
        with pytest.raises(KeyboardInterrupt) if error is KeyboardInterrupt else contextlib.nullcontext():
            log.append(make_record())
    assert reported == ([] if error is KeyboardInterrupt else [error]), "other errors are reported as ever"
    assert signal.getsignal(signal.SIGINT) is before and sys.unraisablehook is hook
    assert len(logs.read(tmp_path / "records.jsonl")) == 1
