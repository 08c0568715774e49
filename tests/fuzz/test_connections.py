"""Connections that are no clients: half-open, slow to write, no HTTP, gone in the midst of it."""

import asyncio
import json
import socket
import time
from urllib.parse import urlsplit

import pytest

from experiments.server_soak import sockets

BODY = json.dumps(dict(prompt="The", max_tokens=2)).encode()


def connected(fuzzed) -> socket.socket:
    where = urlsplit(fuzzed.server.url)
    return socket.create_connection((where.hostname, where.port), timeout=20)


def served(fuzzed) -> None:
    begun = time.perf_counter()
    assert fuzzed.post("/v1/completions", BODY).status_code == 200
    assert time.perf_counter() - begun < 5


def test_half_open_ones_keep_nobody_waiting(fuzzed):
    async def beside_them():
        async with sockets.half_open(fuzzed.server.url, 200):
            await asyncio.to_thread(served, fuzzed)

    asyncio.run(beside_them())


def test_a_slow_writer_is_answered(fuzzed):
    asks = sockets.request(BODY)
    with connected(fuzzed) as one:
        for i in range(len(asks)):
            one.sendall(asks[i : i + 1])
            if i % 40 == 0:
                served(fuzzed)
        assert one.recv(100).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00" * 1000, b"\x16\x03\x01\x02\x00\x01", b"POST\r\n\r\n", b"A" * 200_000,
        b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
    ids=["zeros", "tls", "no path", "no end", "negative", "two lengths", "no chunk"],
)  # fmt: skip
def test_what_is_no_http_is_refused(fuzzed, sent):
    with connected(fuzzed) as one:
        try:
            one.sendall(sent)
            answer = one.recv(1000)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer
    served(fuzzed)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0.0, 0.05, 0.3])
def test_a_client_that_goes_frees_the_server(fuzzed, stream, after):
    body = json.dumps(dict(prompt=["The"] * 64, max_tokens=3, n=1, stream=stream)).encode()
    with connected(fuzzed) as one:
        one.sendall(sockets.request(body))
        time.sleep(after)
    assert fuzzed.server.settled() == (0, 0, 0)
    served(fuzzed)
