"""Runner: the batch on the device, and the programs that work on it, each of a few shapes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.pallas import next_power_of_2

from tokenspeed.engine import batch as batches
from tokenspeed.engine.batch import NOBODY
from tokenspeed.engine.generation import LAUNCHED_ONE_BY_ONE, Drawn, Weights
from tokenspeed.models.decoder import Llama
from tokenspeed.sampling.state import SamplingPlan, SamplingRows

FEWEST_TOKENS = 16
"""Of a chunk: shorter ones are padded."""
ENTRIES = 64
"""Of page tables that travel together."""

_seat = jax.jit(batches.seat, donate_argnums=0)
_turn = jax.jit(batches.turn, donate_argnums=0)
_chunk = jax.jit(
    batches.chunk,
    static_argnames=("behind", "prefill_backend", "implementation"),
    donate_argnums=1,
    compiler_options=LAUNCHED_ONE_BY_ONE,
)
_first = jax.jit(batches.first, static_argnames=("plan", "logprobs", "implementation"), donate_argnums=1)
_steps = jax.jit(batches.steps, static_argnames=("count", "plan", "logprobs", "implementation"), donate_argnums=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of what a runner keeps on the device.

    Attributes:
        pages, page_size: of the pool. slots: sequences that run at a time. max_context: positions of a sequence.
    """

    pages: int
    page_size: int
    slots: int
    max_context: int


class Runner:
    """A model, a batch of slots over a pool of pages, and how a step of theirs is started.

    Args:
        model: the decoder. sizes: of the batch.
        plan: covers the sampling plans of all rows to come.
        implementation, prefill_backend: of the kernels and of prefill's attention, by name.
    """

    def __init__(self, model: Llama, sizes: Sizes, *, plan: SamplingPlan, implementation: str, prefill_backend: str):
        self.sizes, self.plan = sizes, plan
        self._weights, self._rope = Weights.of(model), model.rope_tables(sizes.max_context)
        self._kernels = dict(implementation=implementation)
        self._prefill = dict(implementation=implementation, prefill_backend=prefill_backend)
        pages_each = -(-sizes.max_context // sizes.page_size)
        make = functools.partial(
            batches.empty, model.config, model.dtype, pages=sizes.pages, page_size=sizes.page_size, slots=sizes.slots,
            pages_each=pages_each, plan=plan,
        )  # fmt: skip
        self.batch = jax.jit(make)()

    def seat(self, slot: int, rows: SamplingRows) -> None:
        """Gives a slot to a sequence that draws as `rows`, of one row, says."""
        self.batch = _seat(self.batch, np.int32(slot), rows)

    def turn(self, entries: Sequence[tuple[int, int, int]]) -> None:
        """Notes pages: (slot, place in its table, page) each."""
        for start in range(0, len(entries), ENTRIES):
            part = entries[start : start + ENTRIES]
            packed = np.full((ENTRIES, 3), NOBODY, np.int32)
            packed[: len(part)] = part
            self.batch = _turn(self.batch, packed)

    def chunk(self, slot: int, start: int, tokens: Sequence[int]) -> None:
        """Puts the next tokens of a slot's sequence into the cache."""
        size = max(FEWEST_TOKENS, next_power_of_2(len(tokens)))
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(tokens)] = tokens
        rows = np.array([[slot, start, len(tokens)]], np.int32)
        behind = 0 if start == 0 else min(self.sizes.max_context, next_power_of_2(start))
        self.batch = _chunk(self._weights, self.batch, padded, rows, self._rope, behind=behind, **self._prefill)

    def first(self, rows: Sequence[tuple], plan: SamplingPlan, logprobs: int | None) -> Drawn:
        """Starts the draw of the tokens that follow prompts; rows as in `batch.steps`."""
        how: dict[str, Any] = dict(plan=plan, logprobs=logprobs, **self._kernels)
        self.batch, drawn = _first(self._weights, self.batch, self._packed(rows), **how)
        return drawn

    def steps(self, rows: Sequence[tuple], count: int, plan: SamplingPlan, logprobs: int | None) -> Drawn:
        """Starts `count` steps of decode; rows as in `batch.steps`."""
        how: dict[str, Any] = dict(count=count, plan=plan, logprobs=logprobs, **self._kernels)
        self.batch, drawn = _steps(self._weights, self.batch, self._packed(rows), self._rope, **how)
        return drawn

    def _packed(self, rows: Sequence[tuple]) -> np.ndarray:
        packed = np.zeros((next_power_of_2(len(rows)), 4), np.int32)
        packed[:, 0] = NOBODY
        packed[: len(rows)] = rows
        return packed
