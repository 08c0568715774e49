"""Log: a line of JSON for each request, with what became of it; no prompt, no text and no key is in it."""

import json
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenspeed.completion import Completion
from tokenspeed.server import answers

HEADER = "x-request-id"
LONGEST = 128
"""Of an id that a client gives."""
CLOSED = 499
"""nginx's status of a request whose client has left before it was answered."""


class RequestLog:
    """Around an application: gives each request an id, which its answer has as a header.

    Handlers may add to `request.state.figures` what else the line is to say.

    Args:
        write: takes the line.
    """

    def __init__(self, app: ASGIApp, write: Callable[[str], Any] | None = None):
        self._app, self._write = app, write or (lambda line: print(line, file=sys.stderr, flush=True))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        id = given if 0 < len(given) <= LONGEST and given.isascii() and given.isprintable() else secrets.token_hex(12)
        figures: dict[str, Any] = {}
        scope["state"] = {**scope.get("state", {}), "request_id": id, "figures": figures}
        begun, status = time.perf_counter(), CLOSED

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = id
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            line = dict(
                time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), request_id=id, method=scope["method"],
                path=scope["path"], status=status, ms=round(1e3 * (time.perf_counter() - begun), 3), **figures,
            )  # fmt: skip
            self._write(json.dumps(line))


def figures_of(samples: list[Completion]) -> dict[str, Any]:
    """What a line says of a request's samples: counts of all, times of the first."""
    first, usage = samples[0].timings, answers.usage_of(samples)
    rate = first.tokens_per_s
    return dict(
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
        completion_tokens=usage["completion_tokens"],
        queue_ms=round(1e3 * first.queue_s, 3),
        prefill_ms=round(1e3 * (first.ttft_s - first.queue_s), 3),
        ttft_ms=round(1e3 * first.ttft_s, 3),
        decode_tokens_per_s=None if rate is None else round(rate, 3),
        preemptions=sum(one.preemptions for one in samples),
        finish_reasons=[one.finish_reason for one in samples],
    )
