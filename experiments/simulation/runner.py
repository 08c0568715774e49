"""What stands in for the engine's runner."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.simulation import times
from experiments.simulation.device import Device, Later
from tokenspeed.engine.generation import Drawn
from tokenspeed.engine.kinds import Kind
from tokenspeed.engine.runner import ChunkRow, Program, Runner, Sizes
from tokenspeed.engine.shapes import Shapes
from tokenspeed.sampling.sample import LENGTH, RUNNING

TOKEN = 5


class SimulatedRunner(Runner):
    """One without arrays, whose calls are started on a clock; all draw the same token, until a sequence has enough.

    Attributes:
        device: the clock.
    """

    def __init__(self, model: Any, sizes: Sizes, shapes: Shapes, *, kv: Any = None, **_):
        self.sizes, self.shapes, self.compile_s, self.closed = sizes, shapes, 0.0, True
        self.config, self.dtype, self.kv = model.config, str(model.dtype), kv
        self.device = Device()

    @property
    def programs(self) -> int:
        return 0

    def write_tables(self, slot: int, rows: Any) -> None:
        raise NotImplementedError("the load that is simulated has no bias and no penalties")

    def prepare(self, programs: Iterable[Program], **_) -> float:
        del programs
        return 0.0

    def all_programs(self) -> list[Program]:
        return []

    def settle(self) -> bool:
        self.device.wait()
        return True

    def chunk(self, parts: Sequence[ChunkRow], shape: tuple[int, int]) -> Any:
        del parts
        return Later(np.zeros(()), self.device.run(times.chunk_s(*shape), times.HOST_MS["chunk"] / 1e3))

    def first(self, rows: Sequence[tuple[int, ...]], kind: Kind) -> Drawn:
        _, count = self.shapes.first_for(kind, len(rows))
        return self._drawn(rows, count, times.FIRST_MS / 1e3, "first")

    def steps(self, rows: Sequence[tuple[int, ...]], steps: int, kind: Kind) -> Drawn:
        _, count, _ = self.shapes.decode_for(kind, len(rows), steps)
        return self._drawn(rows, count, times.step_s(count), "steps")

    def _drawn(self, rows: Sequence[tuple[int, ...]], count: int, seconds: float, name: str) -> Drawn:
        """Rows are by `batch.DECODE_COLUMNS`: the third is what was drawn, the fourth the most that may be."""
        reason = np.full(count, RUNNING, np.int32)
        reason[: len(rows)] = [LENGTH if row[2] + 1 >= row[3] else RUNNING for row in rows]
        at = self.device.run(seconds, times.HOST_MS[name] / 1e3)
        tokens: Any = Later(np.full((1, count), TOKEN, np.int32), at)
        return Drawn(tokens=tokens, reason=Later(reason, at), logprobs=None)  # type: ignore[arg-type]
