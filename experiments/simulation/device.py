"""A device that computes nothing and takes its time: programs end one after the other, as on a stream of a GPU."""

import time
from typing import Any

import numpy as np


class Device:
    """Keeps a clock, in seconds of `time.perf_counter`.

    Attributes:
        busy_s: that programs took. idle_s: between two of them, in which nothing had been started.
    """

    def __init__(self):
        self.busy_s = self.idle_s = 0.0
        self._ends: float | None = None

    def run(self, seconds: float, host_s: float) -> float:
        """Starts a program, which takes the host some time; when it will have ended."""
        time.sleep(host_s)
        now = time.perf_counter()
        begins = now if self._ends is None else max(now, self._ends)
        if self._ends is not None:
            self.idle_s += begins - self._ends
        self._ends = begins + seconds
        self.busy_s += seconds
        return self._ends

    def wait(self) -> None:
        """Until all has ended."""
        if self._ends is not None:
            time.sleep(max(0.0, self._ends - time.perf_counter()))


class Later:
    """Of an array what the engine asks of those of a device: its values are there from some time on."""

    def __init__(self, values: np.ndarray, at: float):
        self._values, self._at = values, at

    def is_ready(self) -> bool:
        return time.perf_counter() >= self._at

    def copy_to_host_async(self) -> None:
        pass

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        time.sleep(max(0.0, self._at - time.perf_counter()))
        return np.array(self._values, dtype=dtype, copy=copy)
