"""Chooses tiles where they run: among the other launches of a decoder layer.

    python -m experiments.layer_tiles experiments/results/sweep-h200.jsonl

needs an NVIDIA GPU and takes about a minute a model. A tile that is the fastest in a chain of its own op need not be in
a layer, where the kernel before it ends and the one after it begins. So, op after op, the fastest tiles of a sweep and
the incumbents are timed in a layer that is otherwise as chosen so far, and the best stays. A row for each (`layer_us`)
is appended to the results, from which `experiments.promote`, given the sweep's rows as well, promotes. The flags are
those of `experiments.layer`; each kernel asks for the most of `--prefetch_kib`.
"""

import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from experiments import cases, gpu, grid, layer, provenance, row_log, tables
from experiments.layer import OPS, Layers
from experiments.models import MODELS
from experiments.promote import NOISE, gpu_rows, newest
from experiments.row_log import Log, Row
from experiments.rows import IN_LAYER, rounded
from pallas_kernels.common import devices
from pallas_kernels.common.devices import Device
from tokenspeed import measure

ORDER = ("gate_up", "down", "qkv", "attention", "out")
"""The longest first: what is chosen later is chosen among these."""
NEAR, MOST = 1.3, 8
"""How far behind the fastest tile of a sweep one may be to be tried, and how many of them at most."""

_RESULTS = flags.DEFINE_string("tile_results", "out/layer-tiles-{device}.jsonl", "JSON lines that rows are appended to")


def rows_of(case: cases.Case, rows: Sequence[Row]) -> list[Row]:
    """The newest rows of a sweep of that case, fastest first."""
    same = dict(op=case.op, model=case.model, rows=case.rows, context=grid.context_of(case), dtype=case.dtype)
    members = [row for row in rows if all(row.get(field) == value for field, value in same.items())]
    return tables.timed(newest(members)) if members else []


def candidates(case: cases.Case, swept: Sequence[Row], device: Device) -> list[dict[str, Any]]:
    """What a call runs with today first, then the heuristic, then the fastest of the sweep."""
    found = [cases.fields_of(tiles) for tiles in grid.incumbents(case, device)]
    found += [row["tiles"] for row in swept if row["median_us"] <= NEAR * swept[0]["median_us"]][:MOST]
    return [tiles for i, tiles in enumerate(found) if tiles not in found[:i]]


def choose(layers: Layers, swept: Sequence[Row], device: Device, prefetch: int, ceiling_gbps: float, log: Log, origin):
    """Goes through the ops once; returns the tiles chosen, by op."""
    model, number, context, dtype = layers.model, layers.rows, layers.context, layers.dtype
    found = {op: layer.case_of(op, model, number, context=context, dtype=dtype) for op in OPS}
    options = {op: candidates(case, rows_of(case, swept), device) for op, case in found.items()}
    chosen = {op: found[op].tiles.Tiles(**options[op][0]) for op in OPS}
    for op in ORDER:
        case, alone = found[op], {str(row["tiles"]): row for row in rows_of(found[op], swept)}
        trials = [case.tiles.Tiles(**tiles) for tiles in options[op]]
        programs = gpu.compile_all(
            [functools.partial(layers.compiled, "triton", chosen | {op: tile}, prefetch) for tile in trials], 0
        )
        timings = [layers.time(program) for program in programs]
        best = min(range(len(trials)), key=lambda i: timings[i].median_us)
        known = alone.get(str(options[op][0]))
        needed = NOISE * known["median_us"] if known else 0.0
        if timings[best].median_us > timings[0].median_us - needed:
            best = 0
        for i, (tiles, timing) in enumerate(zip(options[op], timings)):
            log.append(
                dict(
                    mode=IN_LAYER, op=case.op, model=model, rows=number, context=grid.context_of(case), dtype=dtype,
                    tiles=tiles, status="ok", layer_us=rounded(timing.median_us), layer_p10_us=rounded(timing.p10_us),
                    layer_p90_us=rounded(timing.p90_us), samples=timing.samples, incumbent=i == 0, chosen=i == best,
                    layer_tiles={name: cases.fields_of(tile) for name, tile in chosen.items()},
                    layer_context=context, prefetch_bytes=prefetch, ceiling_gbps=round(ceiling_gbps, 1),
                    **origin, date=provenance.now(),
                )
            )  # fmt: skip
            mark = " chosen" if i == best else ""
            print(f"{model} {op}: {timing.median_us:.2f} us a layer with {tables.tiles_text(tiles)}{mark}", flush=True)
        chosen = chosen | {op: trials[best]}
    return chosen


def main(argv) -> None:
    if len(argv) < 2:
        raise app.UsageError("expected the results of a sweep: python -m experiments.layer_tiles RESULTS.jsonl")
    if layer.jax.default_backend() != "gpu":
        raise app.UsageError("tiles are chosen on an NVIDIA GPU; there is none here")
    rows = [row for path in argv[1:] for row in row_log.read(path)]
    origin = provenance.collect(["python", "-m", "experiments.layer_tiles", *argv[1:]])
    device = devices.named(origin["device"])
    ceiling = measure.gpu_read_ceiling_gbps()
    prefetch = layer.KIB * max(int(kib) for kib in layer.PREFETCH_FLAG.value)
    with Log(pathlib.Path(_RESULTS.value.format(device=device.key))) as log:
        for model in layer.MODELS_FLAG.value:
            if model not in MODELS:
                raise app.UsageError(f"models: expected some of {', '.join(MODELS)}, got {model!r}")
            layers = Layers(model, layer.DTYPE_FLAG.value, layer.CONTEXT_FLAG.value, layer.ROWS_FLAG.value)
            choose(layers, gpu_rows(rows, device), device, prefetch, ceiling, log, origin)
        print(f"rows appended to {log.path}")


if __name__ == "__main__":
    app.run(main, argv=sys.argv)
