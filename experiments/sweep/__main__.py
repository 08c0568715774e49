"""Tries every tile of the fused kernels: is it feasible, is it right, how fast is it.

    python -m experiments.sweep --config=tiles.py [--FIELD=VALUE ...] [--promote]

The ops are called as a decode step calls them. On an NVIDIA GPU every tile is compiled, checked against the reference
on float32 operands, and timed cold. Without one, what can be known without one is: see configs/tiles.py. Records are
appended to a JSONL file as they come; a second start goes on where the first stopped, reusing records of the same
device, jax and sources.
"""

import sys

import pallas_kernels as pk
from experiments import promote
from experiments.bench import options as command_line
from experiments.bench import provenance, select
from experiments.bench.device import DeviceLost, gpu_here, in_path
from experiments.bench.ending import INTERRUPTED
from experiments.bench.errors import UsageError
from experiments.bench.log import Log
from experiments.bench.record import Record
from experiments.bench.select import SOFTWARE
from experiments.bench.tile_bench import Machine
from experiments.sweep import cpu, grid, plots, summary
from experiments.sweep.gpu import Sweep
from experiments.sweep.options import Options
from pallas_kernels import Device

MEASURING = ("experiments.bench.cases", "experiments.bench.tile_bench", "experiments.bench.numerics")


def run(options: Options, command: str, device: Device | None = None, machine: Machine | None = None) -> int:
    """The sweep, its table and its pictures. The tests name a device and a machine."""
    device = device or gpu_here()
    if options.promote and device is None:
        raise UsageError("promote: needs times of a GPU, and there is none here")
    cases = grid.of_options(options)
    origin = provenance.collect(command, *MEASURING)
    grid.check_restrictions(cases, options)
    path = options.results.replace("{device}", device.key) if device else in_path(options.results)
    status = 0
    with Log(path) as log:
        try:
            if device is None:
                left = cpu.run(options, cases, log, origin)
            else:
                left = Sweep(options, log, machine or Machine(), device, origin).run(cases)
        except KeyboardInterrupt:
            print(f"\nInterrupted. {path} has every record so far; the same command goes on from there.")
            left, status = 0, INTERRUPTED
        except DeviceLost as error:
            print(f"\nThe GPU stopped answering ({error}). The same command goes on with the next tile.")
            left, status = 0, 1
        known = select.known(log.records)
        records = [found for found in known if all(found[field] == origin[field] for field in SOFTWARE)]
    if left:
        print(f"Time limit reached with {left} to go; the same command goes on from there.")
    finish(options, records, device)
    print(f"Records: {path}")
    if options.promote and device and status == 0:
        promote.promote(records, device)
    return status


def finish(options: Options, records: list[Record], device: Device | None) -> None:
    """Prints the tables and draws the pictures."""
    if device is None:
        print(summary.without_gpu(records))
    else:
        print("\n" + summary.winners(records))
        print(summary.failures(records))
    if not options.plots:
        return
    if device is None:
        lines = plots.draw_cpu(records, options.plots, options, pk.DEVICES[options.devices[-1]])
    else:
        lines = plots.draw_gpu(records, options.plots, device)
    print(*dict.fromkeys(lines), sep="\n")


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.sweep", __doc__, config="tiles.py", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
