"""Admission: how many requests the service takes, and how much may wait; the rest is told to come again."""

import dataclasses
from types import TracebackType

from tokenspeed.server.errors import ApiError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """
    Attributes:
        concurrent: requests under way, those that wait included; None: any number.
        queue: requests that wait for their first token. queue_tokens: tokens of their prompts together; a single
            request may have more.
        max_tokens: that a request may ask for; one that asks for more is cut, or refused where `refuse` says so.
        timeout_s: from a request to its end.
    """

    concurrent: int | None = None
    queue: int | None = None
    queue_tokens: int | None = None
    max_tokens: int | None = None
    refuse: bool = False
    timeout_s: float | None = None

    def tokens(self, asked: int, field: str = "max_tokens") -> int:
        """That a request which asks for so many gets.

        Raises:
            ApiError: 400: it asks for too many.
        """
        if self.max_tokens is None or asked <= self.max_tokens:
            return asked
        if self.refuse:
            raise ApiError(400, f"{field}: expected at most {self.max_tokens}, got {asked}", param=field)
        return self.max_tokens


class Admission:
    """Counts requests. Of one event loop.

    Attributes:
        bounds: that they are held to.
        under_way, waiting, waiting_tokens: now. rejections: so far.
    """

    def __init__(self, bounds: Bounds):
        self.bounds = bounds
        self.under_way = self.waiting = self.waiting_tokens = self.rejections = 0

    def ticket(self, tokens: int) -> "Ticket":
        """Lets a request with a prompt of so many tokens in; to be left as a context.

        Raises:
            ApiError: 429, there are too many.
        """
        bounds = self.bounds
        for name, now, more, most in (
            ("requests under way", self.under_way, 1, bounds.concurrent),
            ("requests that wait", self.waiting, 1, bounds.queue),
            ("tokens that wait", self.waiting_tokens, tokens if self.waiting else 0, bounds.queue_tokens),
        ):
            if most is not None and now + more > most:
                self.rejections += 1
                # About as long as those that wait need; nobody knows better.
                headers = {"Retry-After": str(1 + self.waiting // 16)}
                message = f"there are {now} {name}, of {most} at most: try again later"
                raise ApiError(429, message, code="rate_limit_exceeded", headers=headers)
        return Ticket(self, tokens)


class Ticket:
    """A request that was let in, until the context is left."""

    def __init__(self, admission: Admission, tokens: int):
        self._admission, self._tokens, self._waits = admission, tokens, True
        admission.under_way += 1
        admission.waiting += 1
        admission.waiting_tokens += tokens

    def begun(self) -> None:
        """Its first token has come."""
        if self._waits:
            self._waits = False
            self._admission.waiting -= 1
            self._admission.waiting_tokens -= self._tokens

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.begun()
        self._admission.under_way -= 1
