"""Metrics: what an engine has done since it was made, and where its time went."""

import bisect
import dataclasses
from collections import deque

HOST_BOUNDS = (1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
"""Upper bounds in seconds of what the host takes for a step."""
RECENT = 64
"""Steps of decode by which the rate of reading is told."""


@dataclasses.dataclass(kw_only=True)
class Metrics:
    """Counters that only grow; the engine's thread writes them, others may read. Preemptions are the scheduler's, what
    was found of prompts the pool's.

    Attributes:
        steps: that were dispatched. step_s: seconds in `Engine.step`, those of compiling left out.
        wait_s: of step_s, those in which the host waited for tokens of the device.
        host_counts: calls of `Engine.step` by the host's seconds, up to each of HOST_BOUNDS and beyond the last.
        prefill_tokens: whose keys were computed by chunks, once more after a preemption.
        output_tokens: that have arrived on the host.
        decode_steps: of decode alone, without prefill beside it, whose begin and end are known.
        decode_s: from the end of the step before, or where the device had nothing to do from their own begin.
        decode_bytes: that they had to read, see `memory.decode_bytes`.
    """

    steps: int = 0
    step_s: float = 0.0
    wait_s: float = 0.0
    host_counts: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(HOST_BOUNDS) + 1))
    prefill_tokens: int = 0
    output_tokens: int = 0
    decode_steps: int = 0
    decode_s: float = 0.0
    decode_bytes: float = 0.0
    _recent: deque[tuple[float, float]] = dataclasses.field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def host_s(self) -> float:
        """Seconds of the steps in which the host was busy: with plans, calls and tokens."""
        return self.step_s - self.wait_s

    @property
    def read_bytes_per_s(self) -> float | None:
        """At which the last steps of decode alone read; None where there was none."""
        recent = tuple(self._recent)
        seconds = sum(seconds for _, seconds in recent)
        return sum(count for count, _ in recent) / seconds if seconds else None

    def stepped(self, seconds: float, waited: float) -> None:
        """A call of `Engine.step`, and what it waited."""
        self.step_s += seconds
        self.host_counts[bisect.bisect_left(HOST_BOUNDS, seconds - waited)] += 1

    def decoded(self, steps: int, seconds: float, read_bytes: float) -> None:
        """So many steps of decode alone, that took and read so much together."""
        self.decode_steps += steps
        self.decode_s += seconds
        self.decode_bytes += read_bytes
        self._recent.append((read_bytes, seconds))
