"""Two requests that begin alike, one after the other: what the second finds of the first one's keys and values."""

import dataclasses
from typing import Any

from experiments.throughput.case import Found
from experiments.throughput.client import Request, counts, median, prompts, since, until_idle
from tokenspeed.async_engine import AsyncEngine


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedPrefix:
    """Prompts of `prefix_tokens` and, each its own, `suffix_tokens`; `repeats` times with other prefixes, after once to
    warm up."""

    prefix_tokens: int
    suffix_tokens: int
    repeats: int
    seed: int

    @property
    def kind(self) -> str:
        return "shared_prefix"

    @property
    def fields(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "seed"}

    @property
    def rows(self) -> int:
        return 1

    @property
    def positions(self) -> int:
        return self.prefix_tokens + self.suffix_tokens + 1

    async def run(self, engine: AsyncEngine, vocabulary: int, found: Found) -> None:
        await self.once(engine, vocabulary, 0)
        before = counts(engine)
        times = [await self.once(engine, vocabulary, 1 + i) for i in range(self.repeats)]
        size = engine.engine.pool.page_size
        taken = since(engine, before)
        hit, shared = int(taken["hit_tokens"]), self.repeats * (self.prefix_tokens // size * size)
        if hit < shared:
            found.void(f"{hit} tokens were found of {shared} that are whole pages of prefixes")
        found.fields |= dict(
            first_ttft_ms=median([first for first, _ in times]),
            second_ttft_ms=median([second for _, second in times]),
            prefix_hit_tokens=hit,
            preemptions=int(taken["preemptions"]),
        )

    async def once(self, engine: AsyncEngine, vocabulary: int, number: int) -> tuple[float, float]:
        """The times to the first token of two requests, in ms."""
        (prefix,) = prompts(vocabulary, self.prefix_tokens, 1, self.seed, 3, self.prefix_tokens, number, 0)
        suffixes = prompts(vocabulary, self.suffix_tokens, 2, self.seed, 3, self.prefix_tokens, number, 1)
        times = []
        for suffix in suffixes:
            request = Request(prompt=prefix + suffix, max_tokens=1)
            await request.run(engine)
            await until_idle(engine)
            times.append(request.ttft_ms)
        return times[0], times[1]
