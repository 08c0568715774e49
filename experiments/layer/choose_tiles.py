"""Chooses tiles where they run: among the other launches of a decoder layer.

    python -m experiments.layer.choose_tiles experiments/results/sweep-h200.jsonl [--batch=1] [--page_size=0]

needs an NVIDIA GPU and takes about a minute a model. A tile that is the fastest in a chain of its own op need not be in
a layer, where the kernel before it ends and the one after it begins. So, op after op, the fastest tiles of a sweep and
the incumbents are timed in a layer that is otherwise as chosen so far, and the best stays. A record for each (kind
'tile_in_layer' of experiments/bench/kinds.py) is appended to the results, from which `experiments.promote`, given the
sweep's records as well, promotes. The options are those of `experiments.layer`.
"""

import dataclasses
import functools
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench import log as logs
from experiments.bench import options as command_line
from experiments.bench import provenance, record, select, tables
from experiments.bench.cases import Case
from experiments.bench.compiling import compile_all
from experiments.bench.device import in_path, needed_gpu
from experiments.bench.errors import UsageError
from experiments.bench.log import Log
from experiments.bench.record import Record, rounded
from experiments.layer.layers import Layers
from experiments.layer.options import Options
from experiments.promote import NOISE
from pallas_kernels import Device
from tokenspeed.measure.read_ceiling import gpu_read_ceiling_gbps

MEASURING = ("experiments.layer.layers",)
ORDER = ("gate_up", "down", "qkv", "attention", "out")
"""The longest first: what is chosen later is chosen among these."""
NEAR, MOST = 1.3, 8
"""How far behind the fastest tile of a sweep one may be to be tried, and how many of them at most."""


def swept(case: Case, records: Sequence[Record]) -> list[Record]:
    """The newest records of a sweep of that case, fastest first."""
    members = [found for found in records if all(found[name] == value for name, value in case.fields().items())]
    return select.timed(select.newest(members)) if members else []


def candidates(case: Case, records: Sequence[Record], device: Device) -> list[Any]:
    """What a call runs with today first, then the heuristic's, then the fastest of the sweep."""
    near = [found for found in records if found["median_us"] <= NEAR * records[0]["median_us"]][:MOST]
    return list(dict.fromkeys([*case.incumbents(device), *(case.tiles(found["tiles"]) for found in near)]))


def choose(
    layers: Layers,
    records: Sequence[Record],
    device: Device,
    prefetch: int,
    ceiling_gbps: float,
    log: Log,
    origin: Record,
) -> dict[str, Any]:
    """Goes through the ops once; returns the tiles chosen, by op."""
    alone = {op: swept(case, records) for op, case in layers.cases.items()}
    trials = {op: candidates(case, alone[op], device) for op, case in layers.cases.items()}
    chosen = {op: tiles[0] for op, tiles in trials.items()}
    for op in ORDER:
        case = layers.cases[op]
        programs = compile_all(
            [functools.partial(layers.compiled, "triton", chosen | {op: tile}, prefetch) for tile in trials[op]]
        )
        timings = [layers.time(program) for program in programs]
        best = min(range(len(timings)), key=lambda i: timings[i].median_us)
        used = dataclasses.asdict(trials[op][0])
        known = next((found for found in alone[op] if found["tiles"] == used), None)
        needed = NOISE * known["median_us"] if known else 0.0
        if timings[best].median_us > timings[0].median_us - needed:
            best = 0
        for i, (tiles, timing) in enumerate(zip(trials[op], timings)):
            fields = case.tile_fields(tiles)
            log.append(
                record.new(
                    "tile_in_layer", **fields, status="ok", layer_us=rounded(timing.median_us),
                    layer_p10_us=rounded(timing.p10_us), layer_p90_us=rounded(timing.p90_us), samples=timing.samples,
                    incumbent=i == 0, chosen=i == best,
                    layer_tiles={name: dataclasses.asdict(tile) for name, tile in chosen.items()},
                    layer_context=layers.context, prefetch_bytes=prefetch, ceiling_gbps=round(ceiling_gbps, 1),
                    **origin, date=provenance.now(),
                )
            )  # fmt: skip
            mark = " chosen" if i == best else ""
            how = tables.tiles_text(fields["tiles"]) + mark
            print(f"{layers.model} {op}: {timing.median_us:.2f} us a layer with {how}", flush=True)
        chosen = chosen | {op: trials[op][best]}
    return chosen


def run(options: Options, command: str) -> None:
    if not options.files:
        raise UsageError("expected results of a sweep: python -m experiments.layer.choose_tiles RESULTS.jsonl")
    device = needed_gpu("the choice of tiles")
    for path in options.files:
        if not Path(path).is_file():
            raise UsageError(f"{path}: no such file")
    records = [found for path in options.files for found in logs.read(path)]
    origin = provenance.collect(command, *MEASURING)
    ceiling = gpu_read_ceiling_gbps()
    with Log(in_path(options.results)) as log:
        for model in options.models:
            choose(
                Layers(
                    model, dtype=options.dtype, context=options.context, batch=options.batch,
                    page_size=options.page_size,
                ),
                select.of_device(records, device), device, 1024 * max(options.prefetch_kib), ceiling, log, origin,
            )  # fmt: skip
            gc.collect()  # a cycle would keep the model while the next is made
    print(f"Records: {log.path}")


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.layer.choose_tiles", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
