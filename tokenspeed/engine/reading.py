"""Reading: how fast steps of decode read weights and cache, which is what bounds them."""

from collections import deque
from typing import NamedTuple

from tokenspeed.engine.metrics import Metrics
from tokenspeed.engine.sequence import Plan
from tokenspeed.models import memory
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.kv_dtypes import KVDtypes


class _Step(NamedTuple):
    """When it was begun, and what it reads where it is decode alone."""

    begun: float
    steps: int
    read_bytes: float | None


class Reading:
    """Times the steps that are decode alone. Times are in seconds, of any one clock.

    Args:
        metrics: takes what is found. config, dtype: of the model. kv: what keys and values are stored in.
    """

    def __init__(self, metrics: Metrics, config: ModelConfig, dtype: str, kv: KVDtypes):
        self._metrics, self._config, self._dtype, self._kv = metrics, config, dtype, kv
        self._under_way: deque[_Step] = deque()
        self._ended: float | None = None

    def begun(self, plan: Plan, now: float) -> None:
        """A step is about to be started, before the scheduler has advanced."""
        self._under_way.append(_Step(now, plan.steps, self._bytes(plan)))

    def ended(self, now: float) -> None:
        """The first of those under way has ended. It took as long as it is since the one before, or since its begin."""
        step = self._under_way.popleft()
        if step.read_bytes is not None and self._ended is not None:
            self._metrics.decoded(step.steps, now - max(step.begun, self._ended), step.read_bytes)
        self._ended = now

    def forget(self) -> None:
        """Nothing is under way any more, whenever it ended."""
        self._under_way.clear()
        self._ended = None

    def _bytes(self, plan: Plan) -> float | None:
        """That a plan of decode alone must read, at the keys that its sequences have on average."""
        if plan.chunks:
            return None
        count = len(plan.decodes)
        keys = sum(sequence.computed for sequence in plan.decodes) / count + (plan.steps + 1) / 2
        return plan.steps * memory.decode_bytes(self._config, dtype=self._dtype, context=keys, batch=count, kv=self._kv)
