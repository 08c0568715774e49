"""Metrics: what an engine has done since it was made, and where its time went."""

import dataclasses


@dataclasses.dataclass(kw_only=True)
class Metrics:
    """Counters that only grow; the engine's thread writes them, others may read. Preemptions are the scheduler's, what
    was found of prompts the pool's.

    Attributes:
        steps: that were dispatched. step_s: seconds in `Engine.step`, those of compiling left out.
        wait_s: of step_s, those in which the host waited for tokens of the device.
        prefill_tokens: whose keys were computed by chunks, once more after a preemption.
        output_tokens: that have arrived on the host.
    """

    steps: int = 0
    step_s: float = 0.0
    wait_s: float = 0.0
    prefill_tokens: int = 0
    output_tokens: int = 0

    @property
    def host_s(self) -> float:
        """Seconds of the steps in which the host was busy: with plans, calls and tokens."""
        return self.step_s - self.wait_s
