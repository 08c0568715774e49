"""One case of the decode benchmark: its samples, interleaved over the implementations, and whether they count."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.bench.compiling import LAUNCHED_ONE_BY_ONE, counted
from experiments.bench.device import reason_of
from experiments.bench.outcome import Outcome
from experiments.bench.workload import Workload
from tokenspeed.engine.generation import BROKEN

MOST_SPREAD = 0.10
"""Of (p95 - p5) / median; beyond it something else ran on the machine."""


@dataclasses.dataclass
class Found(Outcome):
    """What one implementation gave.

    Attributes:
        step_ms: milliseconds a step, of each sample. compilation: by which of the programs, of each sample.
        drawn: int32 [steps, B], the tokens of each compilation and sequence.
    """

    step_ms: list[float] = dataclasses.field(default_factory=list)
    compilation: list[int] = dataclasses.field(default_factory=list)
    drawn: dict[tuple[int, int], np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def tokens(self) -> dict[int, np.ndarray]:
        """Of each sequence, as the first compilation drew them."""
        return {sequence: tokens for (compilation, sequence), tokens in self.drawn.items() if compilation == 0}

    @property
    def percentiles(self) -> tuple[float, float, float]:
        """The 5th percentile, the median and the 95th."""
        low, median, high = np.percentile(self.step_ms, (5, 50, 95))
        return float(low), float(median), float(high)

    @property
    def medians(self) -> list[float]:
        """Of the samples of each compilation."""
        times, compilation = np.array(self.step_ms), np.array(self.compilation)
        return [float(np.median(times[compilation == i])) for i in np.unique(compilation)]

    def add(self, sequence: int, step_ms: float, tokens: np.ndarray, *, compilation: int = 0) -> None:
        """A sample.

        A program must draw the same tokens every time. Two compilations of one need not: XLA takes the algorithms of
        products by time, and so its sums in another order.
        """
        self.step_ms.append(step_ms)
        self.compilation.append(compilation)
        if not (self.drawn.setdefault((compilation, sequence), tokens) == tokens).all():
            self.void("the tokens of two runs of a sequence differ")
        if (tokens == BROKEN).any():
            self.void("logits that are not finite")

    def judge(self, compiled: Sequence[str]) -> None:
        """Once all samples are there; `compiled` are the events of the compiler while they were timed."""
        if compiled:
            self.void("something was compiled during timing")
        if self.step_ms and not self.failure:
            low, median, high = self.percentiles
            if high - low > MOST_SPREAD * median:
                self.void(f"(p95 - p5) / median is {(high - low) / median:.1%}, more than {MOST_SPREAD:.0%}")


def timed(program: Callable, *arguments: Any) -> tuple[Any, float]:
    """A call's result, and its seconds from the host's start to the device's end."""
    begin = time.perf_counter()
    result = jax.block_until_ready(program(*arguments))
    return result, time.perf_counter() - begin


class Case:
    """The programs of one case, compiled and run once; `found` says what became of each implementation.

    Each is compiled `compilations` times: XLA takes algorithms by their time, so that one compilation of its step may
    be 1% faster than the next on an H200. The kernels' three took the same.
    """

    def __init__(self, workload: Workload, implementations: Sequence[str], compilations: int = 1):
        self.workload, self._compilations = workload, compilations
        self._programs: dict[str, list[Callable]] = {}
        self.found = {name: Found() for name in implementations}
        with counted() as seen:
            compiled = workload.programs(implementations, compilations)
        for name, programs in compiled.items():
            with self._failing(name, "compiling"):
                for program in programs:
                    if isinstance(program, Exception):
                        raise program
                if not seen:
                    raise RuntimeError("this jax does not say when it compiles")
                self._programs[name] = programs
        for name in self._running():
            with self._failing(name, "running"):
                for program in self._programs[name]:
                    self._run(program, 0)  # loads the program, which is no part of a time

    def measure(self, count: int, repeats: int) -> dict[str, Found]:
        """Times `repeats` runs of each of `count` sequences by every program of every implementation.

        They take turns in an order that is drawn anew for each sequence and compilation (the same in every process):
        states lie in two places in turn, and an 8B's step takes 1% longer in one of them on an H200. In a fixed order
        of an even number of programs each would always have the same.
        """
        order = np.random.default_rng(0)
        with counted() as compiled:
            for _, sequence, i in itertools.product(range(repeats), range(count), range(self._compilations)):
                for name in order.permutation(self._running()).tolist():
                    with self._failing(name, "running"):
                        self.found[name].add(sequence, *self._run(self._programs[name][i], sequence), compilation=i)
        for found in self.found.values():
            found.judge(compiled)
        return self.found

    def trace(self, folder: Path) -> None:
        """Runs every implementation once more, traced by jax.profiler into a folder of its name in `folder`.

        The kernels carry their own names. XLA's operations have theirs from the stage that they belong to, and in a
        command buffer they lose them, so its program is traced without.
        """
        for name in self._running():
            program = self._programs[name][0]
            if name == "xla" and jax.default_backend() == "gpu":
                program = self.workload.compiled(name, LAUNCHED_ONE_BY_ONE)
                self._run(program, 0)
            with jax.profiler.trace(folder / name):
                self._run(program, 0)

    def _run(self, program: Callable, sequence: int) -> tuple[float, np.ndarray]:
        """Milliseconds a step, and the tokens."""
        state = jax.block_until_ready(self.workload.fresh(sequence))
        weights, rope = self.workload.decoder.weights, self.workload.rope
        (_, drawn), seconds = timed(program, weights, state, rope)
        return 1e3 * seconds / self.workload.steps, np.asarray(drawn.tokens)

    def _running(self) -> list[str]:
        return [name for name, found in self.found.items() if not found.failure]

    @contextlib.contextmanager
    def _failing(self, name: str, doing: str) -> Iterator[None]:
        """An error within it becomes the implementation's failure: what else there is to measure goes on."""
        try:
            yield
        except Exception as error:
            self.found[name].failure = f"{doing} failed: {reason_of(error)}"
