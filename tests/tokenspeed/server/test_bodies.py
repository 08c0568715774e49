"""Bodies as nobody should send them: each is refused in one short line, and soon."""

import asyncio
import json
import time
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.server import serve
from tokenspeed.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

JSON = "application/json"
PATHS = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}


def post(path: str, body: bytes, kind: str | None = JSON) -> httpx.Response:
    """The answer of a server that has no model yet, which is what a body without a mistake is told."""
    server, _ = serve.server(lambda: pytest.fail("is not started"), write=lambda line: None)
    app: Any = server.config.app

    async def call():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here") as client:
            return await client.post(path, content=body, headers={} if kind is None else {"content-type": kind})

    return asyncio.run(call())


def refused(response: httpx.Response, *allowed: int) -> str:
    assert response.status_code in allowed
    message = response.json()["error"]["message"]
    assert 0 < len(message) < 800 and "\n" not in message
    return message


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "body: Field required"),
        (b"[" * 100_000, "body: expected JSON in UTF-8: maximum recursion depth"),
        (b'{"prompt":"\xff"}', "body: expected JSON in UTF-8: 'utf-8' codec can't decode"),
        (b'{"prompt":"a","seed":%s}' % (b"9" * 5000), "body: expected JSON in UTF-8: Exceeds the limit"),
        (b'{"prompt":"\\ud800"}', r"prompt: expected valid Unicode, got '\ud800'"),
        (b'{"prompt":"a","model":"\\udfff"}', "model: expected valid Unicode"),
        (b'{"prompt":"a","temperature":"1"}', "temperature: Input should be a valid number"),
        (b'{"prompt":"a","seed":1e999}', "seed: Input should be a valid integer"),
        (b'{"prompt":"a","logit_bias":{"1":true}}', "logit_bias: expected a number for each key, got True for '1'"),
        (json.dumps({"prompt": "a", "x" * 100_000: 1}).encode(), "'xxx"),
        (b'{"prompt":"a","x\\ny":1}', r"'x\ny': is not known"),
    ],
)
def test_a_mistake_is_one_line(body, message):
    assert refused(post("/v1/completions", body), 400).startswith(message)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "x" * 500])
def test_another_content_type(kind):
    message = refused(post("/v1/completions", b'{"prompt":"a"}', kind), 415)
    assert message.startswith("content-type: expected application/json, got ")


@pytest.mark.parametrize("kind", [JSON, "application/json; charset=utf-8", "Application/JSON"])
def test_content_types_of_json(kind):
    assert "is not ready" in refused(post("/v1/completions", b'{"prompt":"a"}', kind), 503)


MANY = 200_000


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/completions", dict(prompt=[1.5] * MANY)),
        ("/v1/completions", dict(prompt=[["a"]] * MANY)),
        ("/v1/completions", dict(prompt="a", stop=[1] * MANY)),
        ("/v1/completions", dict(prompt="a", logit_bias=dict.fromkeys(map(str, range(MANY)), "x"))),
        ("/v1/completions", dict(prompt="a") | dict.fromkeys(map(str, range(MANY)), 1)),
        ("/v1/chat/completions", dict(messages=[{}] * MANY)),
        ("/v1/chat/completions", dict(messages=[dict(role="user", content=[1] * MANY)])),
        ("/detokenize", dict(tokens=["a"] * MANY)),
    ],
)
def test_of_many_mistakes_one_is_told_soon(path, body):
    begun = time.process_time()
    refused(post(path, json.dumps(body).encode()), 400)
    assert time.process_time() - begun < 1.5, "to tell of each takes two to nine seconds"


TEXTS = st.text(st.characters(), max_size=4) | st.sampled_from(["\ud800", "1", "user", "text"])
NUMBERS = st.integers() | st.floats() | st.sampled_from([1e308, 10**400, float("nan"), float("inf"), -0.0])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def bodies(draw) -> tuple[str, bytes]:
    """Of a path: some of its fields, and maybe others, with any values of JSON and of what Python adds to it."""
    path = draw(st.sampled_from(sorted(PATHS)))
    names = st.sampled_from(sorted(PATHS[path].model_fields)) | TEXTS
    sound = dict(prompt="a", messages=[dict(role="user", content="a")], tokens=[1])
    body = {name: value for name, value in sound.items() if name in PATHS[path].model_fields and draw(st.booleans())}
    return path, json.dumps(body | draw(st.dictionaries(names, VALUES, max_size=3))).encode()


@given(bodies())
def test_whatever_a_body_has_it_is_told(case):
    path, body = case
    assert refused(post(path, body), 400, 404, 503)
