"""What a case gave, and the timing that its parts share."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.bench.compiling import counted
from experiments.bench.outcome import Outcome

CALLS = 8
"""Dispatched back to back in one timed region: the host's share of a call passes while the device works."""


@dataclasses.dataclass
class Found(Outcome):
    """What a case gave.

    Attributes:
        ms: of each sample. products_ms, attention_ms, gather_ms: of a chunk's parts, medians, or None.
        tokens_checked: first tokens, the same in every run. tokens_agree: of those, that XLA's attention gives too.
    """

    ms: list[float] = dataclasses.field(default_factory=list)
    products_ms: float | None = None
    attention_ms: float | None = None
    gather_ms: float | None = None
    tokens_checked: int = 0
    tokens_agree: int | None = None

    @property
    def percentiles(self) -> tuple[float, float, float]:
        """The 5th percentile, the median and the 95th."""
        low, median, high = np.percentile(self.ms, (5, 50, 95))
        return float(low), float(median), float(high)


def back_to_back(call: Callable[[Any], Any], carry: Any) -> tuple[Any, float]:
    """The result of CALLS calls, each on the result of the one before, and the milliseconds of one."""
    jax.block_until_ready(carry)
    begin = time.perf_counter()
    for _ in range(CALLS):
        carry = call(carry)
    jax.block_until_ready(carry)
    return carry, 1e3 * (time.perf_counter() - begin) / CALLS


def check_counting() -> None:
    """Raises unless JAX says when it compiles: else no time is known to be free of it."""
    with counted() as seen:
        jax.block_until_ready(jax.jit(lambda x: x + 1)(np.float32(0)))
    if not seen:
        raise RuntimeError("this jax does not say when it compiles")
