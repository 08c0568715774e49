"""A long prompt that arrives while others decode, and a short one that arrives while it is in prefill."""

import asyncio
import dataclasses
from typing import Any, NamedTuple

from experiments.throughput.case import Found
from experiments.throughput.client import (
    POLL_S,
    Request,
    counts,
    median,
    percentile,
    prompts,
    since,
    until_idle,
)  # fmt: skip
from tokenspeed.async_engine import AsyncEngine

BEFORE = 32
"""Tokens that each of the others draws before the long prompt arrives, and after its first few."""
FEW = 4
BACKGROUND_TOKENS = 256
"""That the others have room for at least."""


class Once(NamedTuple):
    """Milliseconds between tokens of the others before the long prompt and during its prefill, and up to the first
    token of the long prompt and of the short one."""

    before: list[float]
    during: list[float]
    long_ttft: float
    short_ttft: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongPrompt:
    """`background` requests of `input_tokens` decode, a prompt of `long_tokens` arrives, and once half of it is under
    way one of `short_tokens`; `repeats` times with other prompts, after once to warm up."""

    long_tokens: int
    background: int
    input_tokens: int
    short_tokens: int
    repeats: int
    seed: int

    @property
    def kind(self) -> str:
        return "long_prompt"

    @property
    def fields(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "seed"}

    @property
    def rows(self) -> int:
        return self.background + 2

    @property
    def positions(self) -> int:
        return max(self.long_tokens + 1, self.short_tokens + 1, self.input_tokens + BACKGROUND_TOKENS)

    async def run(self, engine: AsyncEngine, vocabulary: int, found: Found) -> None:
        await self.once(engine, vocabulary, 0, Found())
        before = counts(engine)
        samples = [await self.once(engine, vocabulary, 1 + i, found) for i in range(self.repeats)]
        found.fields |= dict(
            itl_before_ms_p50=percentile([gap for one in samples for gap in one.before], 50),
            itl_during_ms_p99=percentile([gap for one in samples for gap in one.during], 99),
            long_ttft_ms=median([one.long_ttft for one in samples]),
            short_ttft_ms=median([one.short_ttft for one in samples]),
            preemptions=int(since(engine, before)["preemptions"]),
        )

    async def once(self, engine: AsyncEngine, vocabulary: int, number: int, found: Found) -> Once:
        def of(tokens: int, count: int, max_tokens: int | None, kind: int) -> list[Request]:
            drawn = prompts(vocabulary, tokens, count, self.seed, 2, tokens, number, kind)
            return [Request(prompt=prompt, max_tokens=max_tokens) for prompt in drawn]

        others = of(self.input_tokens, self.background, None, 0)
        (long,), (short,) = of(self.long_tokens, 1, 1, 1), of(self.short_tokens, 1, 1, 2)
        tasks = [asyncio.create_task(one.run(engine)) for one in others]
        try:
            await drawn_by_all(others, tasks, FEW + BEFORE)
            settled = max(one.when(FEW) for one in others)
            before = [gap for one in others for gap in one.gaps_ms(begin=settled)]
            half = engine.engine.metrics.prefill_tokens + self.long_tokens // 2
            of_long = asyncio.create_task(long.run(engine))
            while engine.engine.metrics.prefill_tokens < half and not of_long.done():
                await asyncio.sleep(POLL_S)
            await asyncio.gather(of_long, short.run(engine))
            if short.called > long.first:
                found.void("the long prompt was done before the short one came")
            if any(task.done() for task in tasks):
                found.void("one of the others ended before the long prompt was done")
            await drawn_by_all(others, tasks, 1, after=long.first)  # what waited for the last chunk
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await until_idle(engine)
        during = [gap for one in others for gap in one.gaps_ms(begin=long.called, end=long.first)]
        return Once(before, during, long.ttft_ms, short.ttft_ms)


async def drawn_by_all(
    requests: list[Request], tasks: list[asyncio.Task[None]], tokens: int, after: float = 0.0
) -> None:
    """Waits until each has so many tokens, the last of them after that time, or has ended.

    Raises:
        What one of them has failed with.
    """
    for request, task in zip(requests, tasks):
        while not task.done() and not (len(request.tokens) >= tokens and request.last > after):
            await asyncio.sleep(POLL_S)
        if task.done():
            task.result()
