"""The serve benchmark against the server itself, and against one that is not there."""

import pytest

from experiments.bench import log as logs
from experiments.bench import record
from experiments.serve_bench import __main__ as serve_bench
from tests.tokenspeed.server.conftest import served  # noqa: F401

SHORT = ("--seconds=1.5", "--warm_s=0.2", "--chat_words=4", "--chat_tokens=8", "--long_words=12", "--long_every_s=0.5")


def run(tmp_path, *arguments):
    results = tmp_path / "serve.jsonl"
    status = serve_bench.main([f"--results={results}", *SHORT, *arguments])
    return status, logs.read(results) if results.exists() else []


@pytest.mark.slow
def test_two_endpoints_in_turn(served, tmp_path, capsys):  # noqa: F811
    endpoints = f"--endpoints=a={served.url}/v1,b={served.url}/v1"
    status, records = run(tmp_path, endpoints, "--rates=4,8", "--mixes=both")
    assert status == 0 and [(one["endpoint"], one["rate"]) for one in records] == [
        ("a", 4),
        ("b", 4),
        ("b", 8),
        ("a", 8),
    ]
    for one in records:
        assert record.check(one, "here") and one["status"] == "ok" and one["errors"] == one["rejected"] == 0
        assert one["requests"] > 0 and one["long_ttft_ms_p50"] > 0
        assert 0 < one["ttft_ms_p50"] <= one["ttft_ms_p99"] <= one["whole_ms_p99"]
        assert one["output_tokens_mean"] >= 2
    assert records[0]["requests"] == records[1]["requests"], "the same load"
    assert "TTFT ms p50, p95, p99" in capsys.readouterr().out


@pytest.mark.slow
def test_a_closed_loop(served, tmp_path):  # noqa: F811
    status, records = run(tmp_path, f"--endpoints=a={served.url}/v1", "--arrivals=closed", "--concurrency=1,3")
    assert status == 0 and [one["concurrency"] for one in records] == [1, 3]
    assert all(one["requests"] > 3 and one["errors"] == 0 and one["rate"] is None for one in records)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--endpoints=a=http://127.0.0.1:9/v1",), "endpoints: a: http://127.0.0.1:9/v1 does not answer: "),
        (("--endpoints=http://x",), "endpoints: expected NAME=URL, got http://x"),
        (("--endpoints=a=http://x,a=http://y",), "endpoints: two have one name"),
        (("--arrivals=steady",), "arrivals: unknown 'steady'"),
        (("--mixes=chat,short",), "mixes: unknown 'short'"),
        (("--rates=0",), "rates: expected more than 0, got 0"),
        (("--rates=",), "rates: expected at least one"),
        (("--seconds=0",), "seconds: expected more than 0, got 0.0"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message, capsys):
    status, records = run(tmp_path, *arguments)
    out, err = capsys.readouterr()
    assert (status, records, out) == (2, [], "") and err.startswith(f"error: {message}") and err.count("\n") == 1
