"""How time is measured: calls that depend on each other, many samples."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median and the 10th and 90th percentile of the samples."""

    median_us: float
    p10_us: float
    p90_us: float
    samples: int


def time_calls(run: Callable[[], object], *, calls: int, samples: int = 15, sample_seconds: float = 0.01) -> Timing:
    """Times `run`, which starts `calls` dependent calls on the device and returns arrays without waiting.

    A sample starts `run` often enough to last `sample_seconds` and waits once, so that the host's share of the time
    passes while the device works. One run and one sample are not counted.
    """
    jax.block_until_ready(run())
    begin = time.perf_counter()
    jax.block_until_ready(run())
    repeats = max(1, round(sample_seconds / max(time.perf_counter() - begin, 1e-6)))
    microseconds = []
    for _ in range(samples + 1):
        begin = time.perf_counter()
        for _ in range(repeats):
            result = run()
        jax.block_until_ready(result)
        microseconds.append((time.perf_counter() - begin) * 1e6 / repeats / calls)
    kept = microseconds[1:]
    p10, p90 = np.percentile(kept, [10, 90])
    return Timing(statistics.median(kept), float(p10), float(p90), len(kept))
