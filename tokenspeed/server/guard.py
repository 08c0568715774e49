"""Guard: what is refused before a request is read: a key that is not known, a body that is too long."""

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenspeed.server.errors import ApiError

OPEN = ("/health", "/ready", "/version", "/openapi.json", "/docs", "/redoc", "/")
"""Paths that need no key."""


class Guard:
    """Around an application.

    Args:
        keys: of the API, one of which a request must have; none: it needs none.
        metrics_key: whether /metrics needs one too.
        body_bytes: of a request at most.
    """

    def __init__(self, app: ASGIApp, *, keys: Sequence[str] = (), metrics_key: bool = False, body_bytes: int):
        self._app, self._keys, self._body_bytes = app, [key.encode() for key in keys], body_bytes
        self._open = OPEN if metrics_key else (*OPEN, "/metrics")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._keys and scope["path"] not in self._open and not self._is_known(headers.get("authorization", "")):
            error = ApiError(
                401, "a known API key is needed: Authorization: Bearer KEY", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
            await _answer(error, scope, receive, send)
            return
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._body_bytes:
            await _answer(self._too_long(), scope, receive, send)
            return
        taken, begun = 0, False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._body_bytes:
                raise self._too_long()
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            if taken <= self._body_bytes or begun:  # else it is what the application makes of the error
                begun = True
                await send(message)

        try:
            await self._app(scope, counted, noted)
        except ApiError:
            if begun or taken <= self._body_bytes:
                raise
        if taken > self._body_bytes and not begun:
            await _answer(self._too_long(), scope, receive, send)

    def _is_known(self, header: str) -> bool:
        kind, _, key = header.partition(" ")
        given = key.strip().encode("latin-1")  # as headers are decoded
        # All are compared, each in a time that does not depend on where they differ.
        found = [hmac.compare_digest(given, known) for known in self._keys]
        return kind.lower() == "bearer" and any(found)

    def _too_long(self) -> ApiError:
        return ApiError(413, f"the body has more than the {self._body_bytes} bytes that are taken")


async def _answer(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
