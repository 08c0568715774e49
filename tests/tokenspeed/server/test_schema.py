"""/openapi.json: what it says of answers, and that answers are so."""

import asyncio
from typing import Any

import httpx2 as httpx
import pytest

from tokenspeed.server import serve
from tokenspeed.server.schema import ChatCompletion, ErrorBody, TextCompletion

JSON = "application/json"
BODIES = {
    "/v1/completions": (TextCompletion, dict(prompt=["Once upon a time", "The"], logprobs=1, n=2)),
    "/v1/chat/completions": (ChatCompletion, dict(messages=[dict(role="user", content="Hello")], logprobs=True)),
}


@pytest.fixture(scope="module")
def paths() -> dict[str, Any]:
    server, _ = serve.server(lambda: pytest.fail("is not started"), write=lambda line: None)
    app: Any = server.config.app

    async def call():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here") as client:
            return await client.get("/openapi.json")

    return asyncio.run(call()).json()["paths"]


def kinds(response: dict[str, Any]) -> dict[str, str | None]:
    """Content types, each with the name of its schema, if it has one."""
    content = response.get("content", {})
    return {kind: one["schema"].get("$ref", "").rpartition("/")[2] or None for kind, one in content.items()}


def test_errors_are_those_of_openai(paths):
    for methods in paths.values():
        for method in methods.values():
            assert method["responses"].keys() == {"200", "4XX", "5XX"}
            for status in ("4XX", "5XX"):
                assert kinds(method["responses"][status]) == {JSON: "ErrorBody"}


def test_what_generations_are(paths):
    found = {path: kinds(paths[path]["post"]["responses"]["200"]) for path in BODIES}
    assert found == {path: {JSON: model.__name__, "text/event-stream": None} for path, (model, _) in BODIES.items()}


def test_what_is_no_json(paths):
    assert kinds(paths["/health"]["get"]["responses"]["200"]) == {}
    assert kinds(paths["/metrics"]["get"]["responses"]["200"]) == {"text/plain": None}


@pytest.mark.slow
@pytest.mark.parametrize("path", BODIES)
def test_answers_are_as_it_says(served, path):
    model, body = BODIES[path]
    whole = served.post(path, **body, max_tokens=2).json()
    assert model.model_validate(whole, strict=True).model_dump() == whole, "it says of every field"
    error = served.post(path, **body, max_tokens=0).json()
    assert ErrorBody.model_validate(error, strict=True).model_dump() == error
