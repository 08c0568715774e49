"""The launches of a decoder layer, chained over all layers of a model: what an op costs among its neighbours.

    python -m experiments.layer [--models=llama-3.1-8b,llama-3.2-1b] [--context=1024] [--batch=1] [--page_size=0]

needs an NVIDIA GPU and takes about 20 seconds a model. What is timed is the decode step without its head, with random
weights that are cold (each layer has its own), the tiles that the kernels choose by themselves, dependent calls in
command buffers, launch gaps included. A record per model and implementation (kind 'layer' of
experiments/bench/kinds.py) is appended to the results, with the read ceiling measured in the same run.
"""

import dataclasses
import gc
import sys
from collections.abc import Iterator

from experiments.bench import options as command_line
from experiments.bench import provenance, record
from experiments.bench.device import in_path, needed_gpu
from experiments.bench.errors import UsageError
from experiments.bench.log import Log
from experiments.bench.record import Record
from experiments.layer.layers import Layers, relative_difference
from experiments.layer.options import Options
from pallas_kernels import Device
from tokenspeed.measure.read_ceiling import gpu_read_ceiling_gbps

MEASURING = ("experiments.layer.layers",)
KIB = 1024


def measured(layers: Layers, implementation: str, prefetch: int, ceiling_gbps: float, device: Device) -> Record:
    """Times one implementation and says what it means, as fields of a record."""
    timing = layers.time(layers.compiled(implementation, prefetch=prefetch))
    chosen = layers.chosen_tiles(device) if implementation == "triton" else None
    launches = layers.launches(chosen) if chosen else None
    beyond = timing.median_us - layers.bytes / ceiling_gbps / 1e3
    gbps = layers.bytes / timing.median_us / 1e3
    return dict(
        model=layers.model,
        batch=layers.batch,
        context=layers.context,
        page_size=layers.page_size,
        dtype=layers.dtype,
        implementation=implementation,
        prefetch_bytes=prefetch,
        tiles=chosen and {op: dataclasses.asdict(tile) for op, tile in chosen.items()},
        launches=launches,
        status="ok",
        median_us=round(timing.median_us, 3),
        p10_us=round(timing.p10_us, 3),
        p90_us=round(timing.p90_us, 3),
        samples=timing.samples,
        bytes=layers.bytes,
        achieved_gbps=round(gbps, 1),
        ceiling_gbps=round(ceiling_gbps, 1),
        percent_of_ceiling=round(100 * gbps / ceiling_gbps, 2),
        beyond_bytes_us_per_launch=round(beyond / launches, 3) if launches else None,
    )


def of_model(model: str, options: Options, ceiling_gbps: float, device: Device) -> Iterator[Record]:
    """The fields of each implementation's record; the model is on the device while they come."""
    layers = Layers(
        model, dtype=options.dtype, context=options.context, batch=options.batch, page_size=options.page_size
    )  # fmt: skip
    plain = layers.result("xla")
    for implementation, kib in [("triton", kib) for kib in options.prefetch_kib] + [("xla", 0)]:
        # XLA's stream is not normed, that of a deferred norm carries a weight of one: both are the stream.
        difference = relative_difference(layers.result(implementation, prefetch=kib * KIB), plain)
        yield measured(layers, implementation, kib * KIB, ceiling_gbps, device) | dict(difference_from_xla=difference)


def run(options: Options, command: str) -> None:
    if options.files:
        raise UsageError(f"unexpected argument {options.files[0]!r}")
    device = needed_gpu("the layer benchmark")
    origin = provenance.collect(command, *MEASURING)
    ceiling = gpu_read_ceiling_gbps()
    print(f"Read ceiling of this {origin['device']}, measured now: {ceiling:.0f} GB/s.", flush=True)
    with Log(in_path(options.results)) as log:
        for model in options.models:
            for fields in of_model(model, options, ceiling, device):
                found = record.new("layer", **fields, **origin, date=provenance.now())
                log.append(found)
                print(
                    f"{model} {found['implementation']} prefetch {found['prefetch_bytes'] // KIB} KiB: "
                    f"{found['median_us']:.2f} us a layer, {found['percent_of_ceiling']:.1f}% of the ceiling, beyond "
                    f"bytes a launch: {found['beyond_bytes_us_per_launch']} us; differs from XLA by "
                    f"{found['difference_from_xla']:.2g}",
                    flush=True,
                )
            gc.collect()  # a cycle would keep the model while the next is made
    print(f"Records: {log.path}")


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.layer", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
