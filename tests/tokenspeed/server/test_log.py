"""The log: one line a request, that says what became of it and nothing of what was said."""

import json
import time

import httpx2 as httpx
import pytest

pytestmark = pytest.mark.slow


def line_of(served, id):
    end = time.monotonic() + 10
    while not any(id in line for line in served.log) and time.monotonic() < end:
        time.sleep(0.01)  # it is written once the answer has been sent
    (found,) = [line for line in map(json.loads, served.log) if line["request_id"] == id]
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_request(served, stream):
    body = dict(prompt="Once upon a time", max_tokens=7, temperature=0, stream=stream)
    headers = {"x-request-id": f"mine-{stream}"}
    response = httpx.post(f"{served.url}/v1/completions", json=body, headers=headers, timeout=60)
    assert response.headers["x-request-id"] == headers["x-request-id"]
    line = line_of(served, headers["x-request-id"])
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/completions", 200)
    assert (line["completion_tokens"], line["finish_reasons"], line["preemptions"]) == (7, ["length"], 0)
    assert line["prompt_tokens"] == len(served.llm.encode(body["prompt"]))
    assert 0 < line["queue_ms"] + line["prefill_ms"] <= line["ttft_ms"] + 0.002 < line["ms"]
    assert line["decode_tokens_per_s"] > 0 and "Once" not in json.dumps(line)


def test_a_request_that_is_refused(served):
    response = served.post("/v1/completions", prompt="secret", temperature=-1)
    line = line_of(served, response.headers["x-request-id"])
    assert line["status"] == 400 and "secret" not in json.dumps(line)


@pytest.mark.parametrize("id", ["", "x" * 129])
def test_ids_that_are_none(served, id):
    response = httpx.get(f"{served.url}/health", headers={"x-request-id": id})
    assert len(response.headers["x-request-id"]) == 24
