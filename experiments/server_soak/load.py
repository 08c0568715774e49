"""Loads of a server: so many streams under way for so long, all at once, or of one token each."""

import asyncio
import time
from collections.abc import Callable, Sequence

import httpx2
import numpy as np

from experiments.serve_bench.texts import random_words
from experiments.server_soak.client import RETRY_S, Case, Stream

WORDS = 12
"""Of a prompt at most."""


def cases(count: int, tokens: int, seed: int) -> list[Case]:
    """Different ones, each of up to so many tokens; every fourth is greedy."""
    rng = np.random.default_rng(seed)
    return [
        Case(
            prompt=random_words(int(rng.integers(1, WORDS + 1)), rng), tokens=int(rng.integers(2, tokens + 1)),
            temperature=0.8 if i % 4 else 0.0, seed=i,
        )
        for i in range(count)
    ]  # fmt: skip


def drawn(asked: Sequence[Case], leaving: float, rng: np.random.Generator) -> Stream:
    """A stream of one of them; a share of all leaves, half of it in the midst of tokens, half by the clock."""
    case = asked[int(rng.integers(len(asked)))]
    if rng.random() >= leaving:
        return Stream(case=case)
    if rng.random() < 0.5:
        return Stream(case=case, leave_tokens=int(rng.integers(1, case.tokens)))
    return Stream(case=case, leave_s=float(rng.exponential(1.0)))


async def closed_loop(
    client: httpx2.AsyncClient, asked: Sequence[Case], clients: int, seconds: float, leaving: float, seed: int
) -> list[Stream]:
    """So many clients for so long: where one's stream ends, its next begins."""
    rng, found = np.random.default_rng(seed), []
    end = time.perf_counter() + seconds

    async def one_after_the_other() -> None:
        while time.perf_counter() < end:
            found.append(stream := drawn(asked, leaving, rng))
            await stream.run(client)
            if stream.rejected or stream.error:
                await asyncio.sleep(RETRY_S)

    await asyncio.gather(*(one_after_the_other() for _ in range(clients)))
    return found


async def at_once(client: httpx2.AsyncClient, asked: Sequence[Case], count: int) -> list[Stream]:
    """So many streams, one of each case in turn."""
    found = [Stream(case=asked[i % len(asked)]) for i in range(count)]
    await asyncio.gather(*(stream.run(client) for stream in found))
    return found


async def alone(client: httpx2.AsyncClient, asked: Sequence[Case]) -> dict[Case, Stream]:
    """The stream of each case, one after the other."""
    found = {case: Stream(case=case) for case in asked}
    for stream in found.values():
        await stream.run(client)
    return found


async def one_token_each(
    client: httpx2.AsyncClient, count: int, concurrency: int, tick: Callable[[int], None]
) -> list[str]:
    """So many requests of a token each, so many at a time; what went wrong with any.

    Args:
        tick: told before each how many began before it.
    """
    numbers, problems = iter(range(count)), []

    async def one_after_the_other() -> None:
        for number in numbers:
            tick(number)
            body = dict(prompt=f"The {number % 97}", max_tokens=1, temperature=0, seed=number)
            try:
                response = await client.post("/v1/completions", json=body)
                if response.status_code != 200:
                    problems.append(f"status {response.status_code}")
            except httpx2.HTTPError as error:
                problems.append(type(error).__name__)

    await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))
    return problems
