"""A row of results before anything is known but what it is about."""

import dataclasses
from typing import Any

from experiments import grid
from experiments.cases import Case
from experiments.results import Row

GPU, INTERPRET, LOWER, FEASIBLE, XLA_CPU = "gpu", "interpret", "lower", "feasible", "xla-cpu"
"""The modes of a row. Only `gpu` has times of a kernel: `interpret` checks one in Pallas's interpreter, `lower` lowers
one for CUDA without running it, `feasible` counts the tiles that GPUs can run, `xla-cpu` times XLA on a processor."""


def blank(case: Case, mode: str, tiles: Any, origin: Row) -> Row:
    """A row of the case with nothing found yet."""
    return dict(
        mode=mode,
        op=case.op,
        model=case.model,
        rows=case.rows,
        context=grid.context_of(case),
        dtype=case.dtype,
        tiles=None if tiles is None else dataclasses.asdict(tiles),
        status="",
        error=None,
        error_xla=None,
        feasible=None,
        median_us=None,
        p10_us=None,
        p90_us=None,
        samples=0,
        calls=None,
        bytes=case.cost.bytes,
        achieved_gbps=None,
        ceiling_gbps=None,
        percent_of_ceiling=None,
        xla_us=None,
        compile_s=None,
        **origin,
    )


def rounded(value: float | None) -> float | None:
    """To the digits that a row keeps."""
    return None if value is None else round(value, 4)
