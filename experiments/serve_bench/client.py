"""A request over HTTP, streamed, and when its tokens came."""

import dataclasses
import json
import math
import time
from typing import Any

import httpx2

from experiments.serve_bench.mixes import Prompt

REJECTED = "status 429"
CONTINUOUS, FINAL, EVENTS = COUNTED_BY = ("usage of every event", "usage at the end", "events")
"""What tells how many tokens there are, the best first."""
TOGETHER_S = 0.0002
"""Between events that came together, and were taken one after the other; no step of a model is as short."""
TEXTS = ("content", "reasoning_content", "reasoning")
"""Fields of a delta that hold what was generated."""


@dataclasses.dataclass(eq=False, kw_only=True)
class Request:
    """One, and what has come of it; times are of `time.perf_counter`.

    Attributes:
        due: when it was to be sent. sent: when it was.
        arrivals: (when, how many tokens) of each event with any. Where only the end tells the tokens, each has one.
        status: of HTTP, 0 where there was no answer. error: what kind of thing went wrong, or ''; detail: more of it.
        prompt_tokens, completion_tokens: as the server counts them; None where it does not say.
        counted_by: of COUNTED_BY.
    """

    prompt: Prompt
    due: float
    sent: float = 0.0
    arrivals: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    ended: float = 0.0
    status: int = 0
    error: str = ""
    detail: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    counted_by: str = EVENTS

    async def run(self, client: httpx2.AsyncClient, model: str, extra: dict[str, Any]) -> None:
        """To its end, whatever happens."""
        body = dict(
            model=model, messages=[dict(role="user", content=self.prompt.text)], max_tokens=self.prompt.output,
            temperature=0, stream=True,
        )  # fmt: skip
        self.sent = time.perf_counter()
        try:
            async with client.stream("POST", "/chat/completions", json=body | extra) as response:
                self.status = response.status_code
                if response.status_code != 200:
                    await response.aread()
                    self.error, self.detail = f"status {response.status_code}", response.text[:200]
                    return
                async for line in response.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        self.take(json.loads(line.removeprefix("data: ")), time.perf_counter())
            if not self.arrivals and not self.error:
                self.error = "no token"
        except (httpx2.HTTPError, ValueError) as error:
            self.error, self.detail = type(error).__name__, str(error)[:200]
        finally:
            self.ended = time.perf_counter()

    def take(self, event: dict[str, Any], now: float) -> None:
        """Notes an event of the stream."""
        if "error" in event:
            self.error, self.detail = "error in the stream", str(event["error"])[:200]
        choices, usage = event.get("choices"), event.get("usage")
        if usage:
            self.prompt_tokens, self.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
            self.counted_by = CONTINUOUS if choices or self.counted_by == CONTINUOUS else FINAL
        if not choices:
            return
        if usage:
            tokens = usage["completion_tokens"] - sum(count for _, count in self.arrivals)
        else:
            tokens = int(_has_token(choices[0]))
        if tokens > 0:
            self.arrivals.append((now, tokens))

    @property
    def tokens(self) -> int:
        """That were generated."""
        counted = sum(count for _, count in self.arrivals)
        return counted if self.completion_tokens is None else self.completion_tokens

    @property
    def ttft_ms(self) -> float:
        """From when it was due: a late client's delay is the server's, or a stall would hide what waited behind it."""
        return 1e3 * (self.arrivals[0][0] - self.due)

    @property
    def whole_ms(self) -> float:
        return 1e3 * (self.arrivals[-1][0] - self.due)

    @property
    def gaps_ms(self) -> list[float]:
        """Between two events: 0 for those that come together."""
        return [1e3 * (b - a) for (a, _), (b, _) in zip(self.arrivals, self.arrivals[1:])]

    @property
    def at_once(self) -> list[int]:
        """Tokens of the events that came together."""
        found: list[int] = []
        before = -math.inf
        for now, tokens in self.arrivals:
            if now - before > TOGETHER_S:
                found.append(0)
            found[-1] += tokens
            before = now
        return found

    @property
    def tpot_ms(self) -> float | None:
        """Mean time of a token after those that came first; None where there is no other."""
        if len(groups := self.at_once) < 2:
            return None
        return 1e3 * (self.arrivals[-1][0] - self.arrivals[0][0]) / max(1, self.tokens - groups[0])


def _has_token(choice: dict[str, Any]) -> bool:
    """Whether an event without usage is of a token, whose text may be empty; the role or the end alone is none."""
    delta = choice.get("delta") or {}
    return any(delta.get(name) for name in TEXTS) or ("role" not in delta and choice.get("finish_reason") is None)
