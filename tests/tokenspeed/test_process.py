"""The command line as a process of its own."""

import os
import signal
import subprocess
import sys

import pytest

from tokenspeed import process

GENERATE = [
    "-m",
    "tokenspeed",
    "generate",
    "--model",
    "tiny",
    "--prompt",
    "Once",
    "--max-tokens",
    "500",
    "--ignore-eos",
]


@pytest.fixture
def python():
    """Starts processes, none of which outlives the test."""
    started = []

    def start(*arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | environment,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for one in started:
        one.kill()
        one.wait()


def test_an_interrupt_ends_a_process_that_does_not_come_back_to_python(python):
    code = "import threading; from tokenspeed import process; process.end_at_interrupt(); print('on', flush=True); "
    running = python("-c", code + "threading.Lock().acquire(); lock = threading.Lock(); lock.acquire(); lock.acquire()")
    assert running.stdout.readline() == "on\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (130, "", "")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A user's cache folder, which the workers of this run share."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_said(python, cache):
    running = python(*GENERATE, XDG_CACHE_HOME=str(cache))
    said = running.stdout.read(1)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130 and err == "" and said


@pytest.mark.slow
def test_programs_are_kept_and_a_reader_that_leaves_is_no_error(python, cache):
    running = python(*GENERATE, XDG_CACHE_HOME=str(cache), PYTHONUNBUFFERED="1")
    assert running.stdout.read(1)
    running.stdout.close()
    err = running.stderr.read()
    assert running.wait(timeout=120) == 141 and err == ""
    names = {path.name.split("-")[0] for path in (cache / "tokenspeed/compiled").iterdir()}
    assert {"jit_chunk", "jit_first", "jit_steps"} <= names


@pytest.fixture
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("JAX_"):
            monkeypatch.delenv(name)
    changed = dict(os.environ)
    monkeypatch.setattr(os, "environ", changed)
    return changed


def test_the_cache_is_the_users(environment, monkeypatch, tmp_path):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **_: tmp_path / name)
    process.keep_compiled_programs()
    folder = tmp_path / "tokenspeed/compiled"
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(folder) and folder.is_dir()
    assert int(environment["JAX_COMPILATION_CACHE_MAX_SIZE"]) > 0


def test_the_users_own_settings_stay(environment, monkeypatch, tmp_path):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **_: tmp_path / name)
    environment["JAX_COMPILATION_CACHE_DIR"] = "/elsewhere"
    before = dict(environment)
    process.keep_compiled_programs()
    assert environment == before and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_no_cache(environment, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **_: tmp_path / "file" / name)
    before = dict(environment)
    process.keep_compiled_programs()
    assert environment == before
