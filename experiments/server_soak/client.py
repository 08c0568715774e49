"""A completion over HTTP, streamed, that its client may leave."""

import asyncio
import dataclasses
import json
import time
from typing import Any

import httpx2

RETRY_S = 0.25
"""After which a client that was told to come again does; sooner than it was told to, as some are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is asked: the same one must always be answered alike.

    Attributes:
        prompt: text. tokens: at most. temperature, seed: how they are drawn.
    """

    prompt: str
    tokens: int
    temperature: float
    seed: int

    @property
    def body(self) -> dict[str, Any]:
        return dict(
            prompt=self.prompt, max_tokens=self.tokens, temperature=self.temperature, seed=self.seed, stream=True,
            ignore_eos=True,
        )  # fmt: skip


@dataclasses.dataclass(eq=False, kw_only=True)
class Stream:
    """One request, and what has come of it; times are of `time.perf_counter`.

    Attributes:
        leave_tokens, leave_s: after so many tokens, or seconds, its client leaves; None: it does not.
        text, reason: of its answer; reason is None where that has not ended. arrivals: of each token.
        status: of HTTP, 0 where there was no answer. error: what went wrong, or ''. retry: seconds of Retry-After.
        left: whether its client has.
    """

    case: Case
    leave_tokens: int | None = None
    leave_s: float | None = None
    text: str = ""
    reason: str | None = None
    begun: float = 0.0
    arrivals: list[float] = dataclasses.field(default_factory=list)
    status: int = 0
    error: str = ""
    retry: str = ""
    left: bool = False

    async def run(self, client: httpx2.AsyncClient) -> None:
        """To its end, whatever happens."""
        self.begun = time.perf_counter()
        try:
            async with asyncio.timeout(self.leave_s):
                await self._read(client)
        except TimeoutError:
            self.left = True
        except (httpx2.HTTPError, ValueError) as error:
            self.error = type(error).__name__
        if self.status == 200 and self.reason is None and not self.left and not self.error:
            self.error = "it ended early"

    async def _read(self, client: httpx2.AsyncClient) -> None:
        async with client.stream("POST", "/v1/completions", json=self.case.body) as response:
            self.status = response.status_code
            if self.status == 429:
                self.retry = response.headers.get("retry-after", "")
                return
            if self.status != 200:
                self.error = f"status {self.status}"
                return
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    self._take(json.loads(line.removeprefix("data: ")))
                if len(self.arrivals) == self.leave_tokens:
                    self.left = True
                    return

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = str(event["error"].get("message", "error"))[:200]
            return
        choice = event["choices"][0]
        self.arrivals.append(time.perf_counter())
        self.text += choice["text"]
        self.reason = choice["finish_reason"]

    @property
    def rejected(self) -> bool:
        return self.status == 429

    @property
    def finished(self) -> bool:
        return self.reason is not None and not self.error and not self.left

    @property
    def ttft_ms(self) -> float:
        return 1e3 * (self.arrivals[0] - self.begun)

    @property
    def whole_ms(self) -> float:
        return 1e3 * (self.arrivals[-1] - self.begun)


def client_of(url: str, timeout_s: float) -> httpx2.AsyncClient:
    """A client without a bound on its connections; `timeout_s` is that of a token."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2)
    return httpx2.AsyncClient(base_url=url, timeout=timeout_s, limits=limits)
