"""Clients that misbehave below HTTP: some read slowly, some never finish what they send."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

RECEIVE_BYTES = 4096
"""Of a slow reader's socket, which is soon full."""
SLOW_S = 0.1
"""Its pause after each read of SLOW_BYTES."""
SLOW_BYTES = 64


def request(body: bytes, length: int | None = None) -> bytes:
    """A completion as it goes over the wire; `length`: what it says of its body."""
    length = len(body) if length is None else length
    head = f"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {length}"
    return head.encode() + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def readers(url: str, count: int, tokens: int, pause_s: float) -> AsyncGenerator[None]:
    """Meanwhile so many streams with all log-probabilities, some KB a token, are read, with a pause after SLOW_BYTES
    each; without one as fast as they come."""
    asked = dict(prompt="The", max_tokens=tokens, ignore_eos=True, stream=True, logprobs=20, temperature=0.8)
    async with _connected(url, count, RECEIVE_BYTES if pause_s else None) as sockets:
        asks = request(json.dumps(asked).encode())
        tasks = [asyncio.create_task(_read(one, asks, pause_s)) for one in sockets]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _read(one: socket.socket, asks: bytes, pause_s: float) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(one, asks)
    while await loop.sock_recv(one, SLOW_BYTES if pause_s else 1 << 16):
        await asyncio.sleep(pause_s)


@contextlib.asynccontextmanager
async def half_open(url: str, count: int) -> AsyncGenerator[list[socket.socket]]:
    """Meanwhile so many connections have sent half a request: every other one not even all headers."""
    loop = asyncio.get_running_loop()
    whole = request(b'{"prompt": "The', length=1000)
    async with _connected(url, count) as sockets:
        for number, one in enumerate(sockets):
            await loop.sock_sendall(one, whole if number % 2 else whole[:40])
        yield sockets


def is_open(one: socket.socket) -> bool:
    """Whether the other side has not closed it."""
    try:
        return bool(one.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


@contextlib.asynccontextmanager
async def _connected(url: str, count: int, receive_bytes: int | None = None) -> AsyncGenerator[list[socket.socket]]:
    where = urlsplit(url)
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.setblocking(False)
            if receive_bytes is not None:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            await asyncio.wait_for(loop.sock_connect(one, (where.hostname, where.port)), 30)
        yield sockets
