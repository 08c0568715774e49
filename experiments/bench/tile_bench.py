"""One tile on a device: compile it alone and in a chain of calls, check it, time it cold."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from experiments.bench import cases, operands
from experiments.bench.device import reason_of
from experiments.bench.numerics import Oracle, Verdict
from experiments.bench.recorded import Recorded
from tokenspeed.measure import read_ceiling, timing
from tokenspeed.measure.timing import Timing

Tree = Any
COLD_BYTES = 256 << 20
"""What a chain streams before it reads anything again: more than four times the L2 of an H200."""
MOST_BYTES = 24 << 30
PASS_US, CHAIN_US = 500.0, 20000.0
"""What one pass and a whole chain should last, so that the host's share of starting them stays behind the device."""
LAUNCH_US = 3.0
FEWEST_CALLS, MOST_CALLS, MOST_COPIES = 4, 32, 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What measures: the real thing, or in the tests something quick.

    Attributes:
        implementation: of the kernels that are timed.
        ceiling_gbps: measures the read ceiling.
        time_calls: as `timing.time_calls`.
    """

    implementation: str = "triton"
    ceiling_gbps: Callable[[], float] = read_ceiling.gpu_read_ceiling_gbps
    time_calls: Callable[..., Timing] = timing.time_calls


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a case is chained: `calls` calls, over `copies` of what they stream in turn, `passes` times over."""

    calls: int
    copies: int
    passes: int


def streamed_bytes(call: Recorded) -> int:
    """Of one call."""
    leaves = jax.tree.leaves(call.arguments[operands.streamed_name(call)])
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def plan(call: Recorded, calls: int = 0, passes: int = 0) -> Plan:
    """Enough copies to be cold, enough calls to be long; numbers other than 0 are taken as they are."""
    one = streamed_bytes(call)
    copies = min(max(2, math.ceil(COLD_BYTES / one)), max(1, MOST_BYTES // one), MOST_COPIES)
    call_us = call.cost.floor_us(4000) + LAUNCH_US
    if not calls:
        calls = max(copies, min(MOST_CALLS, max(FEWEST_CALLS, math.ceil(PASS_US / call_us))))
    if not passes:
        passes = max(2, math.ceil(CHAIN_US / (calls * call_us)))
    return Plan(calls, min(copies, calls), passes)


@dataclasses.dataclass(frozen=True)
class Program:
    """A tile, compiled as one call and as a chain of them, or the reason why it is not."""

    once: Callable[[Tree, Tree], Tree] | None
    chain: Callable[[Tree, list[Tree]], Tree] | None
    compile_s: float | None
    reason: str = ""


def compile_call(call: Recorded, tiles: Any, implementation: str, how: Plan | None = None) -> Program:
    """The programs of one tile, without a plan only the single call, whose compile time is kept.

    Never raises: a kernel that does not compile has its reason.
    """

    def once(state, streamed):
        return cases.run(call, state, streamed, tiles, implementation)

    def chain(state, copies):
        return cases.chain(
            call, state, [copies[i % how.copies] for i in range(how.calls)], tiles, implementation, how.passes
        )

    begin = time.perf_counter()
    try:
        key = jax.random.key(0)
        state = jax.eval_shape(lambda key: operands.state(call, key), key)
        streamed = call.arguments[operands.streamed_name(call)]
        lowered = jax.jit(once).lower(state, streamed)
        begin = time.perf_counter()
        single = lowered.compile()
        compile_s = time.perf_counter() - begin
        if how is None:
            return Program(single, None, compile_s)
        chained = jax.jit(chain).lower(state, [streamed] * how.copies).compile()
        return Program(single, chained, compile_s)
    except Exception as error:
        return Program(None, None, time.perf_counter() - begin, f"compile failed: {reason_of(error)}")


class Bench:
    """One call with its operands on the device."""

    def __init__(self, call: Recorded, how: Plan, machine: Machine, seed: int, copies: list[Tree] | None = None):
        self.call, self.plan, self.machine = call, how, machine
        self._state = jax.jit(lambda key: operands.state(call, key))
        self._key = jax.random.key(seed)
        self.copies = self._streamed() if copies is None else copies
        self.oracle = Oracle(call)

    def _streamed(self) -> list[Tree]:
        make = jax.jit(lambda key: operands.streamed(self.call, key))
        return [make(key) for key in jax.random.split(jax.random.fold_in(self._key, 0), self.plan.copies)]

    def state(self, draw: int) -> Tree:
        """Activations of their own for every draw."""
        return self._state(jax.random.fold_in(self._key, 1 + draw))

    def check(self, program: Program, draw: int) -> Verdict:
        """Runs one call on a new draw and judges it."""
        state, streamed = self.state(draw), self.copies[draw % len(self.copies)]
        return self.oracle.judge(program.once(state, streamed), state, streamed)

    def time(self, program: Program, samples: int, sample_seconds: float) -> Timing:
        """Of one call, in the chain."""
        state = self.state(0)
        return self.machine.time_calls(
            lambda: program.chain(state, self.copies),
            calls=self.plan.calls * self.plan.passes,
            samples=samples,
            sample_seconds=sample_seconds,
        )
