"""Tries every tile of the fused kernels: is it feasible, is it right, how fast is it.

    python -m experiments.sweep --config=tiles.py [--config.FIELD=VALUE ...] [--promote]

On an NVIDIA GPU every tile is compiled, checked against the reference on float32 operands, and timed cold. Without one,
what can be known without one is: see configs/tiles.py. Rows are appended to a JSONL file as they come; a second start
goes on where the first stopped, reusing rows of the same device, jax and kernel sources.
"""

import sys
import warnings
from collections.abc import Sequence

import jax
from absl import flags

from experiments import cpu_sweep, grid, plots, promote, provenance, tables
from experiments.cases import OPS
from experiments.gpu import DeviceLost, Machine
from experiments.gpu_sweep import Sweep
from experiments.options import Options, UsageError, fail, parse
from experiments.row_log import SOFTWARE, Log, ResultsError, Row
from pallas_kernels.common import devices
from pallas_kernels.common.devices import Device

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv if argv is None else argv)
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
    values = flags.FlagValues()
    flags.DEFINE_bool("promote", False, "Write the winners to pallas_kernels/tuned/.", flag_values=values)
    flags.DEFINE_bool("help", False, "Print this and stop.", short_name="h", flag_values=values)
    try:
        options, values = parse(argv, values)
        if values.help:
            print(__doc__, *values.get_help().splitlines(), sep="\n")
            return 0
        return run(options, argv, values.promote)
    except (UsageError, ResultsError) as error:
        return fail(error)


def gpu_here() -> Device | None:
    """The GPU that jax runs on, None where there is none; one that is not known is an error."""
    if jax.default_backend() != "gpu":
        return None
    kind = jax.devices()[0].device_kind
    device = devices.find(kind)
    if device is None:
        raise UsageError(f"device: unknown GPU {kind!r}; expected one of {', '.join(devices.DEVICES)}")
    return device


def run(
    options: Options, argv: Sequence[str], promoting: bool, device: Device | None = None, machine: Machine | None = None
) -> int:
    """The sweep, its table and its pictures. The tests name a device and a machine."""
    device = device or gpu_here()
    if promoting and device is None:
        raise UsageError("promote: needs times of a GPU, and there is none here")
    cases = grid.of_options(options)
    origin = provenance.collect(["python -m experiments.sweep", *argv[1:]])
    grid.check_restrictions(cases, options)
    path = options.results.replace("{device}", device.key if device else "cpu")
    status = 0
    with Log(path) as log:
        try:
            if device is None:
                left = cpu_sweep.run(options, cases, log, origin)
            else:
                left = Sweep(options, log, machine or Machine(), device, origin).run(cases)
        except KeyboardInterrupt:
            print(f"\nInterrupted. {path} has every row so far; the same command goes on from there.")
            left, status = 0, INTERRUPTED
        except DeviceLost as error:
            print(f"\nThe GPU stopped answering ({error}). The same command goes on with the next tile.")
            left, status = 0, 1
        rows = [row for row in log.rows if _same_run(row, origin)]
    if left:
        print(f"Time limit reached with {left} to go; the same command goes on from there.")
    finish(options, rows, device)
    print(f"Rows: {path}")
    if promoting and status == 0:
        promote.promote(rows, device)
    return status


def _same_run(row: Row, origin: Row) -> bool:
    """Whether a run of this origin would reuse the row."""
    return row["op"] in OPS and all(row.get(field) == origin[field] for field in SOFTWARE)


def finish(options: Options, rows: list[Row], device: Device | None) -> None:
    """Prints the tables and draws the pictures."""
    if device is None:
        print(cpu_sweep.summary(rows))
    else:
        print("\n" + tables.winners(rows))
        print(tables.failures(rows))
    if not options.plots:
        return
    if device is None:
        lines = plots.draw_cpu(rows, options.plots, options, devices.DEVICES[options.devices[-1]])
    else:
        lines = plots.draw_gpu(rows, options.plots, device)
    print(*dict.fromkeys(lines), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
