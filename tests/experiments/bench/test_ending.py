"""How commands end: processes whose reader goes away, whose output is full, or that are interrupted."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench import ending

ROOT = Path(__file__).resolve().parents[3]
STORIES = [sys.executable, "-m", "experiments.train_tiny.stories", "--count=2000"]
"""A command that prints more than a pipe holds."""


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(STORIES, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 128 + signal.SIGPIPE


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_is_full_is_one_line():
    with open("/dev/full", "w") as full:
        run = subprocess.run(STORIES, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (1, "error: No space left on device\n")


@pytest.mark.slow
def test_control_c_before_a_command_has_begun_says_nothing():
    """A command whose imports never come to an end, by way of a module that all of them import."""
    program = (
        "import runpy, sys, types\nclass Stuck:\n    def find_spec(self, name, *_):\n        if name == 'jax':\n"
        "            print('importing', flush=True)\n            while True: pass\n"
        "sys.meta_path.insert(0, Stuck())\nsys.argv = ['-m']\n"
        "runpy.run_module('experiments.sweep', run_name='__main__', alter_sys=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "") and process.returncode == 130
    finally:
        process.kill()  # it would never end


def test_an_interruption_is_a_status_and_says_what_is_kept(capsys):
    def interrupted():
        error = KeyboardInterrupt()
        error.add_note("out/records.jsonl has every record so far.")
        raise error

    assert ending.ended(interrupted) == 130
    assert capsys.readouterr() == ("", "\nInterrupted. out/records.jsonl has every record so far.\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_what_a_command_returns_is_its_status(status):
    assert ending.ended(lambda: status) == status
