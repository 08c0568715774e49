"""Errors as a client sees them: a status, and a body in OpenAI's shape."""

from collections.abc import Mapping
from typing import Any

from tokenspeed.messages import one_line

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """What a request is answered with.

    Args:
        status: of HTTP. message: one line. param: the field of the body that it is about, or None.
        code: that programs ask for, or None. headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return dict(error=dict(message=self.message, type=kind, param=self.param, code=self.code))


def refused(error: Exception) -> ApiError:
    """Of what a check of ours said of a request: the field stands before the first colon of its line."""
    message = one_line(error)
    field, colon, _ = message.partition(":")
    return ApiError(400, message, param=field if colon and field.isidentifier() else None)
