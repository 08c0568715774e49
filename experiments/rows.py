"""The fields of a row of results.

mode, status: what was done and how it came out. `ok` alone is the status of a kernel that was right and timed on a GPU;
    everything else says in words what it is, or why there is no time.
op, model, rows, context, dtype, tiles: the case and the tile. Only attention has a context.
error, error_xla: relative RMS error of the kernel and of XLA, both against the reference on float32 operands.
median_us, p10_us, p90_us, samples, calls: of one call of the kernel, and how many samples of how many chained calls.
bytes, achieved_gbps, ceiling_gbps, percent_of_ceiling: what must move, how fast it did, how fast the device can read.
xla_us: XLA's time for the same. compile_s: seconds to compile a single call.
layer_us, layer_p10_us, layer_p90_us, incumbent, chosen, layer_tiles: of a tile in a layer, the time of that layer,
    whether the tile is what the kernel would use by itself, whether it was the best, and the tiles of the other ops.
feasible: on a machine without a GPU, what GPUs can run.
device, driver, clocks, jax, kernels, commit, dirty, date, command: where the row comes from; `kernels` is a digest over
    the sources of the kernels and of what times them.
"""

from typing import Any

from experiments import grid
from experiments.cases import Case, fields_of
from experiments.row_log import Row

GPU, INTERPRET, LOWER, FEASIBLE, XLA_CPU = "gpu", "interpret", "lower", "feasible", "xla-cpu"
IN_LAYER = "layer"
"""The modes of a row. Only `gpu` has times of a kernel, and `layer` those of a layer with that tile in it: `interpret`
checks a tile in Pallas's interpreter, `lower` lowers it for CUDA without running it, `feasible` counts the tiles that
GPUs can run, `xla-cpu` times XLA on a processor."""


def blank(case: Case, mode: str, tiles: Any, origin: Row) -> Row:
    """A row of the case with nothing found yet."""
    return dict(
        mode=mode,
        op=case.op,
        model=case.model,
        rows=case.rows,
        context=grid.context_of(case),
        dtype=case.dtype,
        tiles=None if tiles is None else fields_of(tiles),
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
