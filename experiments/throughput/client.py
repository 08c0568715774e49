"""Requests to an AsyncEngine, and when their tokens came."""

import asyncio
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tokenspeed.async_engine import AsyncEngine
from tokenspeed.sampling.params import SamplingParams

POLL_S = 0.001


@dataclasses.dataclass(eq=False, kw_only=True)
class Request:
    """A greedy request that no token ends, and what has come of it.

    Attributes:
        prompt: token ids. max_tokens: to be drawn; None: as many as the context has room for.
        called: when it was made, in seconds of `time.perf_counter`.
        arrivals: (when, how many tokens) of each delta. tokens: all that have come.
    """

    prompt: list[int]
    max_tokens: int | None
    called: float = 0.0
    arrivals: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)

    async def run(self, engine: AsyncEngine, watch: Callable[[], None] = lambda: None) -> None:
        """To its end; `watch` is called at each delta."""
        params = SamplingParams(temperature=0.0, max_tokens=self.max_tokens, ignore_eos=True)
        self.called = time.perf_counter()
        async for delta in engine.stream(id(self), self.prompt, params):
            if delta.token_ids:
                self.arrivals.append((time.perf_counter(), len(delta.token_ids)))
                self.tokens += delta.token_ids
            watch()

    @property
    def first(self) -> float:
        """When its first token came."""
        return self.arrivals[0][0]

    @property
    def last(self) -> float:
        return self.arrivals[-1][0]

    def when(self, tokens: int) -> float:
        """When it had so many tokens, which have come."""
        counts = itertools.accumulate(count for _, count in self.arrivals)
        return next(now for (now, _), count in zip(self.arrivals, counts) if count >= tokens)

    @property
    def ttft_ms(self) -> float:
        return 1e3 * (self.first - self.called)

    @property
    def whole_ms(self) -> float:
        """From its call to its last token."""
        return 1e3 * (self.last - self.called)

    def gaps_ms(self, begin: float = -math.inf, end: float = math.inf) -> list[float]:
        """Of each token but those of the first delta: the time since the delta before, by the tokens of its own.

        Args:
            begin, end: only deltas for which the wait was, in part at least, between these.
        """
        found = []
        for (before, _), (now, count) in zip(self.arrivals, self.arrivals[1:]):
            if before < end and now > begin:
                found += [1e3 * (now - before) / count] * count
        return found


def prompts(vocabulary: int, tokens: int, count: int, *seed: int) -> list[list[int]]:
    """Random ids; of another seed others, where the numbers are as many or the last of them is not 0."""
    return np.random.default_rng(seed).integers(0, vocabulary, (count, tokens)).tolist()


async def closed_loop(
    engine: AsyncEngine, requests: Iterable[Request], concurrency: int, watch: Callable[[], None] = lambda: None
) -> None:
    """Runs all of them, `concurrency` at a time: where one ends the next begins."""
    left = iter(requests)

    async def one_at_a_time() -> None:
        for request in left:
            await request.run(engine, watch)

    await asyncio.gather(*(one_at_a_time() for _ in range(concurrency)))


async def until_idle(engine: AsyncEngine) -> None:
    """What was given up may still be under way."""
    while not engine.is_dead and not engine.engine.is_idle:
        await asyncio.sleep(POLL_S)


def counts(engine: AsyncEngine) -> dict[str, float]:
    """Of the engine, since it was made."""
    one = engine.engine
    return dict(
        steps=one.metrics.steps,
        host_s=one.metrics.host_s,
        wait_s=one.metrics.wait_s,
        preemptions=one.scheduler.preemptions,
        hit_tokens=one.pool.stats.hit_tokens,
    )


def since(engine: AsyncEngine, before: dict[str, float]) -> dict[str, float]:
    """Counts since others were taken."""
    return {name: value - before[name] for name, value in counts(engine).items()}


def percentile(values: Sequence[float], percent: float) -> float | None:
    """To the digits of a record; None of no values."""
    return round(float(np.percentile(values, percent)), 4) if len(values) else None


def median(values: Sequence[float]) -> float | None:
    return percentile(values, 50)
