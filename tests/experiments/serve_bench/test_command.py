"""The serve benchmark against the server itself, and against one that is not there."""

import pytest

from experiments.bench import log as logs
from experiments.bench import record
from experiments.random_checkpoint.tokenizer import make_tokenizer
from experiments.serve_bench import __main__ as serve_bench
from experiments.serve_bench.client import CONTINUOUS
from tests.tokenspeed.server.conftest import served  # noqa: F401
from tokenspeed import TINY

SHORT = (
    "--seconds=1.5", "--warm_s=0.2", f"--tokenizer={TINY}", "--chat_input=10", "--chat_output=8", "--long_input=60",
    "--long_every_s=0.5", "--most_late_ms=10000", "--plots=",
)  # fmt: skip


def run(tmp_path, *arguments):
    results = tmp_path / "serve.jsonl"
    status = serve_bench.main([f"--results={results}", *SHORT, *arguments])
    return status, logs.read(results) if results.exists() else []


@pytest.mark.slow
def test_two_endpoints_in_turn(served, tmp_path, capsys):  # noqa: F811
    endpoints = f"--endpoints=a={served.url}/v1,b={served.url}/v1"
    status, records = run(tmp_path, endpoints, "--rates=8", "--mixes=both", f"--plots={tmp_path / 'plots'}")
    assert status == 0 and [(one["endpoint"], one["mix"]) for one in records] == [
        ("a", "chat"), ("b", "chat"), ("b", "both"), ("a", "both")
    ]  # fmt: skip
    for one in records:
        assert record.check(one, "here") and one["status"] == "ok" and one["errors"] == one["rejected"] == 0
        assert one["requests"] == records[0]["requests"] > 0, "the same load"
        assert 0 < one["ttft_ms_p50"] <= one["ttft_ms_p99"] <= one["whole_ms_p99"]
        assert one["output_tokens_mean"] >= 2 and one["template_tokens"] == 4 and one["tokens_per_event_mean"] == 1
        assert one["counted_by"] == CONTINUOUS
    alone, beside = records[0], records[3]
    assert beside["long_ttft_ms_p50"] > 0 and beside["ttft_ms_p95_without_long"] == alone["ttft_ms_p95"]
    assert beside["ttft_p95_ratio"] == pytest.approx(beside["ttft_ms_p95"] / alone["ttft_ms_p95"], rel=1e-3)
    assert alone["ttft_p95_ratio"] is None
    assert "TTFT ms p50, p95, p99" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["serve-both.png", "serve-chat.png"]


@pytest.mark.slow
def test_another_tokenizer_is_told(served, tmp_path, capsys):  # noqa: F811
    other = tmp_path / "tokenizer.json"
    make_tokenizer(4000, 0).save(str(other))
    endpoint = f"--endpoints=a={served.url}/v1"
    _, (found,) = run(tmp_path, endpoint, "--rates=8", f"--tokenizer={other}", "--seconds=0.5")
    assert found["status"].startswith("void: the tokenizer is not the server's, which counts ")
    assert found["status"] in capsys.readouterr().out


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
        (("--warm_s=-1",), "warm_s: expected 0 or more, got -1.0"),
        (("--spread=-0.5",), "spread: expected 0 or more, got -0.5"),
        (("--most_late_ms=0",), "most_late_ms: expected more than 0, got 0.0"),
        (("--tokenizer=nowhere",), "tokenizer: no file nowhere"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message, capsys):
    status, records = run(tmp_path, *arguments)
    out, err = capsys.readouterr()
    assert (status, records, out) == (2, [], "") and err.startswith(f"error: {message}") and err.count("\n") == 1
