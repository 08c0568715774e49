"""When requests arrive: by a clock of their own, whether those before have been answered or not."""

import numpy as np

ARRIVALS = ("poisson", "bursty", "closed")


def times(kind: str, rate: float, seconds: float, burst: int, rng: np.random.Generator) -> list[float]:
    """Seconds from the begin, ascending, all before `seconds`.

    Args:
        kind: 'poisson': independent of each other; 'bursty': `burst` at a time, the bursts Poisson.
        rate: requests a second, on average.
    """
    if kind == "bursty":
        return [time for time in times("poisson", rate / burst, seconds, 1, rng) for _ in range(burst)]
    found, now = [], 0.0
    while (now := now + rng.exponential(1 / rate)) < seconds:
        found.append(float(now))
    return found
