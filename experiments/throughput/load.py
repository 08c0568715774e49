"""A closed loop: so many requests under way at a time, a new one for each that ends."""

import dataclasses
from typing import Any

from experiments.throughput.case import Found
from experiments.throughput.client import Request, closed_loop, counts, percentile, prompts, since, until_idle
from tokenspeed.async_engine import AsyncEngine

WARM_TOKENS = 16
"""That are drawn for each prompt of the warm run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """Different random prompts of `input_tokens`, of each of which `output_tokens` are drawn."""

    concurrency: int
    requests: int
    input_tokens: int
    output_tokens: int
    seed: int

    @property
    def kind(self) -> str:
        return "throughput"

    @property
    def fields(self) -> dict[str, Any]:
        return dict(
            concurrency=self.concurrency,
            requests=self.requests,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
        )

    @property
    def rows(self) -> int:
        return self.concurrency

    @property
    def positions(self) -> int:
        return self.input_tokens + self.output_tokens

    def of(self, vocabulary: int, stage: int, count: int, max_tokens: int) -> list[Request]:
        """Requests of prompts that no other case and stage has."""
        drawn = prompts(vocabulary, self.input_tokens, count, self.seed, 1, self.concurrency, stage)
        return [Request(prompt=prompt, max_tokens=max_tokens) for prompt in drawn]

    async def run(self, engine: AsyncEngine, vocabulary: int, found: Found) -> None:
        """After a warm run; then one of the requests again, alone."""
        warm = self.of(vocabulary, 0, self.concurrency, min(WARM_TOKENS, self.output_tokens))
        await closed_loop(engine, warm, self.concurrency)
        await until_idle(engine)
        requests = self.of(vocabulary, 1, self.requests, self.output_tokens)
        occupancy = 0.0

        def watch() -> None:
            nonlocal occupancy
            occupancy = max(occupancy, engine.engine.pool.occupancy)

        before = counts(engine)
        await closed_loop(engine, requests, self.concurrency, watch)
        taken = since(engine, before)
        if any(len(one.tokens) != self.output_tokens for one in requests):
            found.void("a request that drew another number of tokens than was asked for")
        again = Request(prompt=requests[self.requests // 2].prompt, max_tokens=self.output_tokens)
        await again.run(engine)
        found.fields |= figures(requests, taken) | dict(
            pool_occupancy=round(occupancy, 4), tokens_alike=alike(requests[self.requests // 2].tokens, again.tokens)
        )


def figures(requests: list[Request], taken: dict[str, float]) -> dict[str, Any]:
    """Of all requests together, and of the engine.

    Args:
        taken: by the engine meanwhile, as `client.since` gives it.
    """
    steps = int(taken["steps"])
    return times(requests) | dict(
        steps=steps,
        host_ms_per_step=round(1e3 * taken["host_s"] / max(steps, 1), 4),
        wait_ms_per_step=round(1e3 * taken["wait_s"] / max(steps, 1), 4),
        preemptions=int(taken["preemptions"]),
        prefix_hit_tokens=int(taken["hit_tokens"]),
        tokens_checked=sum(len(one.tokens) for one in requests),
    )


def times(requests: list[Request]) -> dict[str, Any]:
    """Of all requests together, by when their tokens came."""
    seconds = max(one.last for one in requests) - min(one.called for one in requests)
    tokens = sum(count for one in requests for _, count in one.arrivals)
    ttft = [one.ttft_ms for one in requests]
    gaps = [gap for one in requests for gap in one.gaps_ms()]
    return dict(
        seconds=round(seconds, 4),
        output_tokens_per_s=round(tokens / seconds, 2),
        requests_per_s=round(len(requests) / seconds, 4),
        ttft_ms_p50=percentile(ttft, 50),
        ttft_ms_p99=percentile(ttft, 99),
        itl_ms_p50=percentile(gaps, 50),
        itl_ms_p99=percentile(gaps, 99),
        whole_ms_p50=percentile([one.whole_ms for one in requests], 50),
    )


def alike(tokens: list[int], others: list[int]) -> int:
    """How many of them are the same before the first that differs."""
    return next((i for i, (a, b) in enumerate(zip(tokens, others)) if a != b), min(len(tokens), len(others)))
