"""Guard: keys and lengths, before anything of a request is read."""

import asyncio

import httpx2 as httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from tokenspeed.server.guard import Guard
from tokenspeed.server.serve import keys_of


async def length_of(request):
    return JSONResponse(len(await request.body()))


def get(path, *, body=None, headers=None, **options):
    paths = ("/v1/models", "/metrics", "/health")
    app = Guard(Starlette(routes=[Route(one, length_of, methods=["GET", "POST"]) for one in paths]), **options)

    async def call():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here") as client:
            return await client.request("POST" if body is not None else "GET", path, content=body, headers=headers)

    return asyncio.run(call())


KEYS = dict(keys=("one", "ключ"), body_bytes=10)


@pytest.mark.parametrize("header", ["Bearer one", "bearer one", "Bearer ключ".encode()])
def test_a_known_key(header):
    assert get("/v1/models", headers={"authorization": header}, **KEYS).status_code == 200


@pytest.mark.parametrize("header", [None, "", "one", "Bearer", "Bearer on", "Bearer onee", "Basic one", b"Bearer \xff"])
def test_another(header):
    response = get("/v1/models", headers={} if header is None else {"authorization": header}, **KEYS)
    assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key" and "one" not in response.text.split()


def test_what_needs_no_key():
    assert get("/health", **KEYS).status_code == get("/metrics", **KEYS).status_code == 200
    assert get("/metrics", **KEYS, metrics_key=True).status_code == 401
    assert get("/v1/models", body_bytes=10).status_code == 200


def test_bodies_have_a_length():
    assert get("/v1/models", body=b"x" * 10, body_bytes=10).json() == 10
    assert get("/v1/models", body=b"x" * 11, body_bytes=10).status_code == 413

    async def pieces():
        for _ in range(4):
            yield b"xxx"

    response = get("/v1/models", body=pieces(), body_bytes=10)
    assert response.status_code == 413 and response.json()["error"]["message"].startswith("the body has more than")


def test_keys_of_a_file_or_of_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    monkeypatch.setenv("TOKENSPEED_API_KEYS", "three, four,")
    assert keys_of(str(file)) == ["one", "two"] and keys_of(None) == ["three", "four"]
    monkeypatch.delenv("TOKENSPEED_API_KEYS")
    assert keys_of(None) == []
    file.write_text("\n")
    with pytest.raises(ValueError, match=r"^--api-key-file: expected a key a line in "):
        keys_of(str(file))
    with pytest.raises(ValueError, match=r"^--api-key-file: .*No such file"):
        keys_of(str(tmp_path / "none"))
