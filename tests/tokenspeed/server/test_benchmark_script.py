"""The benchmark that people run: one chat, streamed, a line of data for each token, by a plain client of HTTP."""

import http.client
import json
import time

import pytest

MAX_TOKENS = 80
"""256 as people have it, but the server of these tests has a context of 128."""
BODY = dict(
    model="local", messages=[dict(role="user", content="Tell me a story about a rabbit.")], max_tokens=MAX_TOKENS,
    stream=True,
)  # fmt: skip


def benchmark(url: str) -> tuple[str, list[tuple[float, str]]]:
    """The request's id, and each line of data with the seconds from the request to it."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        begun = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(BODY), headers)
        response = connection.getresponse()
        assert response.status == 200
        lines = [
            (time.perf_counter() - begun, line.decode().removeprefix("data: ").strip())
            for line in response
            if line.startswith(b"data: ")
        ]
        return response.headers["x-request-id"], lines
    finally:
        connection.close()


def logged(served, id: str) -> dict:
    """The log's line about a request, which is written once the answer has been sent."""
    end = time.monotonic() + 10
    while not any(id in line for line in served.log) and time.monotonic() < end:
        time.sleep(0.01)
    (found,) = [json.loads(line) for line in served.log if id in line]
    return found


@pytest.mark.slow
def test_a_line_is_a_token(served):
    id, lines = benchmark(served.url)
    assert lines[-1][1] == "[DONE]"
    events, times = [json.loads(text) for _, text in lines[:-1]], [when for when, _ in lines[:-1]]
    assert all(len(one["choices"]) == 1 for one in events), "no line of usage, which was not asked for"
    first, last = events[0]["choices"][0], events[-1]["choices"][0]
    assert first["delta"]["content"], "the first line has a token, not the role alone"
    assert last["finish_reason"] in ("stop", "length")
    said = logged(served, id)
    assert len(events) == said["completion_tokens"] > 1
    assert len(events) <= MAX_TOKENS

    ttft_s, tokens_per_s = times[0], (len(events) - 1) / (times[-1] - times[0])
    assert times == sorted(times) and 0 < ttft_s < 60 and tokens_per_s > 0
    assert 1e3 * ttft_s >= said["ttft_ms"], "no token is there before the server has it"
