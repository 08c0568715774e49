"""The server soak, short: it finds nothing wrong with the server, and sees what is."""

import contextlib
import itertools

import pytest

from experiments.bench import log as logs
from experiments.server_soak import __main__ as server_soak
from experiments.server_soak import load
from experiments.server_soak.client import Stream
from experiments.server_soak.process import Server
from tests.compiling import compiling_alike

SHORT = (
    "--cases=8", "--tokens=8", "--one_token=50", "--slow_readers=1", "--half_open=20", "--batch=2", "--restart=false",
)  # fmt: skip


def test_the_same_seed_gives_the_same_cases_and_some_are_left():
    first = load.cases(20, 8, 3)
    assert first == load.cases(20, 8, 3) != load.cases(20, 8, 4) and len(set(first)) == 20
    assert {case.temperature for case in first} == {0.0, 0.8} and all(2 <= case.tokens <= 8 for case in first)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One for all tests here: it starts longer than a short soak takes."""
    arguments = ["--batch-invariant", "--max-num-seqs=2", "--max-model-len=128", "--max-concurrent=20"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in compiling_alike().items():
            patch.setenv(name, value)
        with Server(arguments, tmp_path_factory.mktemp("soak") / "server.log") as running:
            yield running


@pytest.fixture
def soaked(server, monkeypatch, tmp_path):
    """The exit status and the record of a short soak of it."""
    monkeypatch.setattr(server_soak, "Server", lambda *_: contextlib.nullcontext(server))
    path = tmp_path / "soak.jsonl"

    def soak(*options):
        return server_soak.main([*SHORT, f"--results={path}", *options]), logs.read(path)[-1]

    return soak


@pytest.mark.slow
def test_a_short_soak(soaked):
    status, record = soaked("--clients=20", "--seconds=3")
    assert record["status"] == "ok" and status == 0
    assert record["same_as_alone"] == record["finished"] > 0 and record["left"] > 0 and record["errors"] == 0
    assert record["finished"] + record["left"] + record["rejected"] == record["requests"]
    assert record["overfull_rejected"] > 0 and record["half_open_held"] <= 20 and record["ready_again_s"] is None


@pytest.mark.slow
def test_it_sees_streams_that_are_not_those_alone(soaked, monkeypatch):
    run, calls = Stream.run, itertools.count()

    async def wrong(stream, client):
        await run(stream, client)
        if next(calls) % 12 == 11:  # none of the eight that are alone
            stream.text += "?"

    monkeypatch.setattr(Stream, "run", wrong)
    status, record = soaked("--clients=20", "--seconds=0.2")
    assert status == 1 and "streams are not those of the requests alone" in record["status"]
    assert record["same_as_alone"] < record["finished"]


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--clients=0", "clients: expected 1 or more, got 0"),
        ("--seconds=0", "seconds: expected more than 0, got 0.0"),
        ("--leaving=1", "leaving: expected 0 or more and less than 1, got 1.0"),
        ("--half_open=1000000000000", "clients, half_open: they take 1000000001500 open files, and the limit is "),
    ],
)
def test_mistakes_are_one_line(argument, message, capsys):
    assert server_soak.main([argument]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {message}") and err.count("\n") == 1
