"""An engine that serves without a model: it draws the tokens of a request at turns of the event loop."""

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

from experiments.throughput.load import alike
from tokenspeed.async_engine import AsyncEngine
from tokenspeed.completion import Delta
from tokenspeed.engine.metrics import Metrics
from tokenspeed.engine.page_pool import PoolStats

CHUNK, PAGE = 64, 16


class Served(AsyncEngine):
    """Without its thread.

    Args:
        each: tokens of a delta. room: that a request without an end draws. reuse: whether a prefix is found again.
    """

    def __init__(self, *, each: int = 1, room: int = 10**6, reuse: bool = True):
        self.counts = SimpleNamespace(
            metrics=Metrics(),
            scheduler=SimpleNamespace(preemptions=0),
            pool=SimpleNamespace(stats=PoolStats(), occupancy=0.0, page_size=PAGE, pages=8),
            runner=SimpleNamespace(programs=7),
            is_idle=True,
        )
        self.closed = False
        self.asked: list[tuple[list[int], int | None]] = []
        self.under_way = self.most = 0
        self._each, self._room, self._reuse = each, room, reuse

    @property
    def engine(self) -> Any:
        return self.counts

    @property
    def is_dead(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    def drawn(self, prompt: list[int], place: int) -> list[int]:
        """The token at a place, as a list; a test may have it differ, end or fail."""
        return [(sum(prompt) + place) % 89]

    async def stream(self, id, prompt: Any, params=None, *, priority=0):
        del id, priority
        assert params is not None and params.temperature == 0 and params.ignore_eos
        known = max((alike(prompt[:-1], other) for other, _ in self.asked), default=0)
        known = known // PAGE * PAGE if self._reuse else 0
        hits = self.engine.pool.stats.hit_tokens + known
        self.engine.pool.stats = PoolStats(hit_tokens=hits)
        self.asked.append((prompt, params.max_tokens))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.engine.pool.occupancy = self.under_way / 8
        try:
            for start in range(known, len(prompt), CHUNK):
                self.engine.metrics.prefill_tokens += min(CHUNK, len(prompt) - start)
                await asyncio.sleep(0.002)
            place, most = 0, params.max_tokens or self._room
            while place < most:
                await asyncio.sleep(0)
                self.engine.metrics.steps += 1
                self.engine.metrics.step_s += 0.005
                self.engine.metrics.wait_s += 0.003
                count = min(self._each, most - place)
                drawn = [self.drawn(prompt, place + i) for i in range(count)]
                yield Delta(text=None, token_ids=list(itertools.chain(*drawn)))
                place += count
        finally:
            self.under_way -= 1
