"""Bounds of requests, as clients meet them."""

import dataclasses
import re

import pytest

from tokenspeed.server.admission import Bounds

pytestmark = pytest.mark.slow

MESSAGES = [dict(role="user", content="Hello")]


@pytest.fixture
def bounded(served, monkeypatch):
    """Sets bounds of the server for one test."""
    return lambda **bounds: monkeypatch.setattr(served.admission, "bounds", Bounds(**bounds))


def test_a_cap(served, bounded):
    bounded(max_tokens=3)
    for asked in (dict(), dict(max_tokens=2), dict(max_tokens=50), dict(max_completion_tokens=50)):
        found = served.post("/v1/chat/completions", messages=MESSAGES, ignore_eos=True, **asked).json()
        assert found["usage"]["completion_tokens"] == (2 if asked == dict(max_tokens=2) else 3)
    found = served.post("/v1/completions", prompt="The", ignore_eos=True).json()
    assert found["usage"]["completion_tokens"] == 3
    bounded(max_tokens=3, refuse=True)
    response = served.post("/v1/chat/completions", messages=MESSAGES, max_completion_tokens=4)
    assert response.status_code == 400 and response.json()["error"]["param"] == "max_completion_tokens"


CHAT, TEXT = ("/v1/chat/completions", dict(messages=MESSAGES)), ("/v1/completions", dict(prompt=["Hi", "Once upon a"]))


@pytest.mark.parametrize(
    "path, body, field",
    [(*CHAT, "max_tokens"), (*CHAT, "max_completion_tokens"), (*TEXT, "max_tokens")],
)
def test_no_more_than_the_context_leaves(served, bounded, path, body, field):
    context = served.llm.max_context
    body |= dict(ignore_eos=True, temperature=0)
    error = (refused := served.post(path, **body, **{field: context})).json()["error"]
    assert refused.status_code == 400 and (error["param"], error["code"]) == (field, "context_length_exceeded")
    most, prompt = map(int, re.findall(r"at most (\d+), what the (\d+) tokens of the prompt", error["message"])[0])
    assert error["message"].endswith(f"in a context of {context}, got {context}") and most + prompt == context
    bounded(max_tokens=5)
    cut = served.post(path, **body, **{field: context}).json()
    assert {choice["finish_reason"] for choice in cut["choices"]} == {"length"}
    assert cut["usage"]["completion_tokens"] == 5 * len(cut["choices"])
    bounded(max_tokens=context - 1)
    assert served.post(path, **body, **{field: context}).status_code == 400, "a cap that leaves too many cuts nothing"
    bounded()
    whole = served.post(path, **body, **{field: most}).json()["choices"]
    assert {choice["finish_reason"] for choice in whole} == {"length"}


def test_what_asks_for_nothing_gets_what_the_context_leaves(served):
    found = served.post("/v1/completions", prompt=[5] * (served.llm.max_context - 3), ignore_eos=True).json()
    assert found["usage"]["completion_tokens"] == 3


def test_too_many_are_told_to_come_again(served, bounded):
    bounded(concurrent=2)
    response = served.post("/v1/completions", prompt=["a", "b", "c"], max_tokens=40, ignore_eos=True)
    assert response.status_code == 429 and int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert served.post("/v1/completions", prompt=["a", "b"], max_tokens=2).status_code == 200
    assert served.admission.under_way == served.admission.waiting == 0


def test_a_request_that_takes_too_long(served, bounded):
    bounded(timeout_s=1e-6)
    response = served.post("/v1/chat/completions", messages=MESSAGES)
    assert response.status_code == 408 and response.json()["error"]["code"] == "timeout"
    bounded()
    assert served.post("/v1/chat/completions", messages=MESSAGES, max_tokens=1).status_code == 200
    assert dataclasses.asdict(served.admission.bounds)["timeout_s"] is None and served.admission.under_way == 0
