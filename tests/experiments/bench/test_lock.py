"""One process at a time writes to a results file, whatever becomes of it; what it wrote is there."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench import log as logs
from experiments.bench.errors import ResultsError
from experiments.bench.log import Log

ROOT = Path(__file__).resolve().parents[3]
HELD = r"process \d+ on \S+ \(.+, since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\) writes to it; try again when that has ended"


def test_a_file_is_held_until_it_is_closed(tmp_path, make_record):
    path = tmp_path / "records.jsonl"
    with Log(path) as log:
        log.append(make_record())
        with pytest.raises(ResultsError) as raised:
            Log(path)
        assert re.fullmatch(f"{re.escape(str(path))}: {HELD}", str(raised.value))
        assert f"process {os.getpid()} on " in str(raised.value)
        assert logs.read(path) == [make_record()], "who only reads needs no lock"
        log.append(make_record(rows=2))
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"
    with Log(path) as log:
        assert log.records == [make_record(), make_record(rows=2)]


def test_a_file_is_held_by_any_of_its_names(tmp_path):
    (tmp_path / "records.jsonl").touch()
    (tmp_path / "other.jsonl").symlink_to("records.jsonl")
    with Log(tmp_path / "records.jsonl"), pytest.raises(ResultsError, match="writes to it"):
        Log(tmp_path / "other.jsonl")


def test_a_file_that_could_not_be_opened_is_not_held(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("nonsense\n")
    with pytest.raises(ResultsError, match="expected a record"):
        Log(path)
    path.write_text("")
    Log(path).close()


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "records.jsonl.lock").mkdir()
    with pytest.raises(ResultsError, match=r"records\.jsonl\.lock: "):
        Log(tmp_path / "records.jsonl")


WRITER = """
import json, sys
from experiments.bench.log import Log
path, found = sys.argv[1], json.loads(sys.argv[2])
with Log(path) as log:
    for rows in range(1, int(sys.argv[3]) + 1):
        log.append(found | dict(rows=rows))
        print(rows, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def writer(path, found, count):
    """A process that appends so many records and then holds the file until its input ends."""
    command = [sys.executable, "-c", WRITER, str(path), json.dumps(found), str(count)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_opening_a_file_that_another_process_appends_to_loses_none_of_its_records(tmp_path, make_record):
    path, refused = tmp_path / "records.jsonl", 0
    with writer(path, make_record(), 100) as process:
        assert process.stdout is not None
        for line in process.stdout:
            assert logs.read(path)
            with pytest.raises(ResultsError, match=rf"process {process.pid} on \S+ \(python -c .*, since .*writes to"):
                Log(path)
            refused += 1
            if line == "100\n":
                break
    assert refused == 100 and [found["rows"] for found in logs.read(path)] == list(range(1, 101))


@pytest.mark.slow
def test_a_process_that_was_killed_holds_nothing_and_its_half_record_is_repaired(tmp_path, make_record):
    path = tmp_path / "records.jsonl"
    with writer(path, make_record(), 3) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "3\n":
            pass
        process.kill()
        process.wait()
    with open(path, "ab") as file:
        file.write(json.dumps(make_record(rows=4)).encode()[:50])
    with Log(path) as log:
        assert len(log.records) == 3
        log.append(make_record(rows=5))
    assert [found["rows"] for found in logs.read(path)] == [1, 2, 3, 5]


@pytest.mark.slow
def test_of_two_sweeps_on_one_file_the_second_is_refused(tmp_path):
    path = tmp_path / "records.jsonl"
    command = [
        sys.executable, "-m", "experiments.sweep", "--models=ragged", "--ops=out", "--cpu_models=", "--plots=",
        "--interpret_tiles=2", "--lower_tiles=2", f"--results={path}",
    ]  # fmt: skip
    environment = os.environ | dict(JAX_PLATFORMS="cpu")
    with Log(path):
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and run.stdout == "" and re.fullmatch(f"error: {path}: {HELD}\n", run.stderr)
    assert path.read_bytes() == b""
