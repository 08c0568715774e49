"""A load: requests that arrive by a clock, or so many under way at a time."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np

from experiments.serve_bench import arrivals
from experiments.serve_bench.client import Request
from experiments.serve_bench.mixes import Prompt, Sizes


def prompts_of(mix: str, sizes: Sizes, seed: int, salt: int) -> Iterator[Prompt]:
    """Endless; of the mix 'both' only its chats, since its long prompts come by a clock of their own.

    How long they are is by `seed` alone, and the same with long prompts as without.
    """
    rng, texts = np.random.default_rng((seed, 1)), np.random.default_rng((seed, 2, salt))
    while True:
        yield sizes.long(texts) if mix == "long" else sizes.chat(rng, texts)


def with_long(prompts: Iterator[Prompt], sizes: Sizes, seed: int, salt: int, every: int = 16) -> Iterator[Prompt]:
    """With a long one in place of each `every`th, for a loop that has no clock."""
    texts = np.random.default_rng((seed, 3, salt))
    for number, prompt in enumerate(prompts):
        yield sizes.long(texts) if number % every == every // 2 else prompt


def planned(
    kind: str, mix: str, rate: float, seconds: float, burst: int, long_every_s: float, sizes: Sizes, seed: int,
    salt: int,
) -> list[tuple[float, Prompt]]:  # fmt: skip
    """When each request of an open loop is due, from the begin, and what it is.

    Args:
        seed: of times and lengths. salt: of texts too: a server may know those that it has had before.
    """
    prompts = prompts_of(mix, sizes, seed, salt)
    due = arrivals.times(kind, rate, seconds, burst, np.random.default_rng(seed))
    found = [(when, next(prompts)) for when in due]
    if mix == "both":
        texts = np.random.default_rng((seed, 3, salt))
        found += [(when, sizes.long(texts)) for when in np.arange(long_every_s / 2, seconds, long_every_s).tolist()]
    return sorted(found, key=lambda one: one[0])


async def open_loop(
    client: httpx2.AsyncClient, model: str, plan: list[tuple[float, Prompt]], extra: dict[str, Any]
) -> list[Request]:
    """Sends each when it is due, whether those before have been answered or not."""
    begun, requests, tasks = time.perf_counter(), [], []
    for when, prompt in plan:
        await asyncio.sleep(max(0.0, begun + when - time.perf_counter()))
        requests.append(Request(prompt=prompt, due=begun + when))
        tasks.append(asyncio.create_task(requests[-1].run(client, model, extra)))
    await asyncio.gather(*tasks)
    return requests


async def closed_loop(
    client: httpx2.AsyncClient, model: str, prompts: Iterator[Prompt], concurrency: int, seconds: float,
    extra: dict[str, Any],
) -> list[Request]:  # fmt: skip
    """So many under way at a time, for so long: where one ends the next is due."""
    requests: list[Request] = []
    end = time.perf_counter() + seconds

    async def one_at_a_time() -> None:
        while (now := time.perf_counter()) < end:
            request = Request(prompt=next(prompts), due=now)
            requests.append(request)
            await request.run(client, model, extra)
            if request.error:
                await asyncio.sleep(0.05)  # one that is refused at once is no load

    await asyncio.gather(*(one_at_a_time() for _ in range(concurrency)))
    return requests
