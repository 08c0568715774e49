"""CORS: pages of elsewhere, where they are let in, and the keys that they need all the same."""

import asyncio
from typing import Any

import httpx2 as httpx
import pytest

from tokenspeed.server import serve

PAGE = "https://page.example.org"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


def ask(method, path, headers, **options):
    """One request to a server that never loads anything."""
    server, _ = serve.server(lambda: pytest.fail("is not started"), write=lambda line: None, **options)

    async def call():
        app: Any = server.config.app
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(call())


@pytest.mark.parametrize("origins, allowed", [((PAGE,), PAGE), (("*",), "*"), (("http://other", PAGE), PAGE)])
def test_a_browser_asks_beforehand_without_a_key(origins, allowed):
    response = ask("OPTIONS", "/v1/chat/completions", PREFLIGHT, origins=origins, keys=["secret"])
    assert response.status_code == 200 and response.headers["access-control-allow-origin"] == allowed
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "x-stainless-os" in response.headers["access-control-allow-headers"]


def test_what_follows_needs_one():
    how = dict(origins=(PAGE,), keys=["secret"])
    refused = ask("GET", "/v1/models", {"origin": PAGE}, **how)
    assert refused.status_code == 401, "and the page may read why"
    answered = ask("GET", "/v1/models", {"origin": PAGE, "authorization": "Bearer secret"}, **how)
    assert answered.status_code == 200
    for response in (refused, answered):
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in response.headers["access-control-expose-headers"].lower()
        assert response.headers["x-request-id"]


def test_others_are_not_let_in():
    other = PREFLIGHT | {"origin": "https://other.example.org"}
    assert ask("OPTIONS", "/v1/models", other, origins=(PAGE,)).status_code == 400
    assert "access-control-allow-origin" not in ask("GET", "/v1/models", other, origins=(PAGE,)).headers


def test_it_is_off_by_default():
    assert ask("OPTIONS", "/v1/models", PREFLIGHT).status_code == 405
    assert "access-control-allow-origin" not in ask("GET", "/v1/models", PREFLIGHT).headers
