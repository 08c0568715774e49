"""A kernel that only reads cold memory, timed in a chain of dependent calls: what the comparisons of layouts share."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from experiments.bench import provenance, record
from experiments.bench.log import Log
from experiments.bench.record import Record
from tokenspeed.measure.timing import Timing

COLD_BYTES, CHAIN_US = 300e6, 20_000
"""What the calls of a chain rotate over, more than any L2, and how long it lasts."""


def lengths(call_bytes: int) -> tuple[int, int]:
    """How many arrays of this size a chain has, and how often it passes over them."""
    count = int(COLD_BYTES // call_bytes) + 1
    return count, int(CHAIN_US / count / (call_bytes / 4e6 + 3)) + 1


def chained(read: Callable, before: jax.Array, arrays: Sequence[Any], passes: int) -> Callable[[], jax.Array]:
    """The compiled chain of read(before, array) -> the next `before`, all arrays in turn, `passes` times."""

    def chain(before, arrays):
        return lax.fori_loop(0, passes, lambda _, before: functools.reduce(read, arrays, before), before)

    program = jax.jit(chain).lower(before, arrays).compile()
    return lambda: program(before, arrays)


def append(log: Log, kind: str, fields: Record, timing: Timing, call_bytes: int, origin: Record) -> None:
    """A record of one call's time and rate."""
    log.append(
        record.new(
            kind, **fields, status="ok", median_us=round(timing.median_us, 3), p10_us=round(timing.p10_us, 3),
            p90_us=round(timing.p90_us, 3), samples=timing.samples, bytes=call_bytes,
            achieved_gbps=round(call_bytes / timing.median_us / 1e3, 1), **origin, date=provenance.now(),
        )
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The file that records are appended to."""

    results: str = "out/layouts-{device}.jsonl"
