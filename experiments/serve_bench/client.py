"""A request over HTTP, streamed, and when its tokens came."""

import dataclasses
import json
import time
from typing import Any

import httpx2

from experiments.serve_bench.mixes import Prompt


@dataclasses.dataclass(eq=False, kw_only=True)
class Request:
    """One, and what has come of it; times are of `time.perf_counter`.

    Attributes:
        due: when it was to be sent. sent: when it was. arrivals: of each event with a token.
        status: of HTTP, 0 where there was no answer. error: what went wrong, or ''.
        prompt_tokens: as the server counts them; None where it does not say.
    """

    prompt: Prompt
    due: float
    sent: float = 0.0
    arrivals: list[float] = dataclasses.field(default_factory=list)
    ended: float = 0.0
    status: int = 0
    error: str = ""
    prompt_tokens: int | None = None

    async def run(self, client: httpx2.AsyncClient, model: str, extra: dict[str, Any]) -> None:
        """To its end, whatever happens."""
        body = dict(
            model=model, messages=[dict(role="user", content=self.prompt.text)], max_tokens=self.prompt.tokens,
            temperature=0, stream=True, stream_options=dict(include_usage=True), **extra,
        )  # fmt: skip
        self.sent = time.perf_counter()
        try:
            async with client.stream("POST", "/chat/completions", json=body) as response:
                self.status = response.status_code
                if response.status_code != 200:
                    self.error = f"status {response.status_code}"
                    return
                async for line in response.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        self._take(json.loads(line.removeprefix("data: ")))
            if not self.arrivals and not self.error:
                self.error = "no token"
        except (httpx2.HTTPError, ValueError) as error:
            self.error = type(error).__name__
        finally:
            self.ended = time.perf_counter()

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = str(event["error"].get("message", "error"))[:200]
        if event.get("choices"):
            self.arrivals.append(time.perf_counter())
        if usage := event.get("usage"):
            self.prompt_tokens = usage["prompt_tokens"]

    @property
    def ttft_ms(self) -> float:
        """From when it was due: a late client's delay is the server's, or a stall would hide what waited behind it."""
        return 1e3 * (self.arrivals[0] - self.due)

    @property
    def whole_ms(self) -> float:
        return 1e3 * (self.arrivals[-1] - self.due)

    @property
    def gaps_ms(self) -> list[float]:
        """Between two events."""
        return [1e3 * (b - a) for a, b in zip(self.arrivals, self.arrivals[1:])]

    @property
    def tokens_per_s(self) -> float | None:
        """After the first token; None where there is no other."""
        span = self.arrivals[-1] - self.arrivals[0] if self.arrivals else 0.0
        return (len(self.arrivals) - 1) / span if span > 0 else None
