"""What a decode step moves, by the GPU's own counters: bytes from and to memory, kernel by kernel.

    python -m experiments.counters [--models=llama-3.1-8b,llama-3.2-1b] [--implementations=triton,xla] [--context=1024]

needs an NVIDIA GPU and Nsight Compute (`ncu`), which takes the kernels of one step one at a time: its times are those
of kernels alone, without what runs beside them, so only the bytes are compared. A row for each name of a kernel is
appended to the results. Beside the fields of every row (experiments/rows.py):

kernel, calls: its name, and how often it runs in a step. read_bytes, written_bytes: of all its calls.
alone_us: of all its calls, each alone. step_bytes: what the whole step must read; step_read_bytes: what it did read.
"""

import argparse
import csv
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments import provenance, tables
from experiments.cases import DTYPES
from experiments.decode_loop import Decoder, Workload, mean_bytes
from experiments.models import config_of
from experiments.options import UsageError, check_name, check_published, fail
from experiments.row_log import Log, ResultsError, Row
from pallas_kernels.common import devices

READ, WRITTEN, TIME = "dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum"
UNITS = {
    "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "ns": 1e-3, "us": 1.0, "ms": 1e3, "nsecond": 1e-3,
    "usecond": 1.0, "msecond": 1e3,
}  # fmt: skip
"""In bytes and microseconds."""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--models", default="llama-3.1-8b,llama-3.2-1b", help="files of configs/models")
    found.add_argument("--implementations", default="triton,xla")
    found.add_argument("--context", type=int, default=1024, help="positions in the cache")
    found.add_argument("--batch", type=int, default=1, help="sequences at a time")
    found.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    found.add_argument("--results", default="out/counters-{device}.jsonl", help="JSON lines that rows are appended to")
    found.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    return found


def step(arguments: argparse.Namespace) -> None:
    """Runs one step between the marks that the profiler waits for; in a process of its own, below it."""
    decoder = Decoder(config_of(arguments.models), DTYPES[arguments.dtype], 0)
    workload = Workload(decoder, batch=arguments.batch, context=arguments.context, steps=1)
    program = workload.compiled(arguments.implementations)
    driver = ctypes.CDLL("libcuda.so.1")
    for marked in (False, True):
        state = jax.block_until_ready(workload.fresh(0))
        if marked:
            driver.cuProfilerStart()
        jax.block_until_ready(program(decoder.weights, state, workload.rope))
    driver.cuProfilerStop()


def profiled(model: str, implementation: str, arguments: argparse.Namespace) -> list[dict[str, str]]:
    """What the profiler says of each launch of a step: its table, with the line of units first."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "counters.csv"
        command = [
            "ncu", "--profile-from-start", "off", "--graph-profiling", "node", "--clock-control", "none",
            "--cache-control", "none", "--metrics", f"{READ},{WRITTEN},{TIME}", "--csv", "--page", "raw",
            "--log-file", str(log), sys.executable, "-m", "experiments.counters", "--step", f"--models={model}",
            f"--implementations={implementation}", f"--context={arguments.context}", f"--batch={arguments.batch}",
            f"--dtype={arguments.dtype}",
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True)
        text = log.read_text() if log.exists() else ""
    lines = [line for line in text.splitlines() if not line.startswith("==")]
    if run.returncode or len(lines) < 3:
        said = (text + run.stdout + run.stderr).strip().splitlines()
        raise ResultsError(f"ncu: {model}, {implementation}: {said[-1] if said else 'no output'}")
    return list(csv.DictReader(lines))


def kernels(lines: Sequence[dict[str, str]]) -> list[Row]:
    """A row for each name, the one that reads most first."""
    units, found = lines[0], {}
    for line in lines[1:]:
        read, written, us = (float(line[name].replace(",", "")) * UNITS[units[name]] for name in (READ, WRITTEN, TIME))
        row = found.setdefault(line["Kernel Name"].split("(")[0], dict(calls=0, read=0.0, written=0.0, us=0.0))
        row["calls"] += 1
        row["read"] += read
        row["written"] += written
        row["us"] += us
    return [
        dict(kernel=name, calls=row["calls"], read_bytes=round(row["read"]), written_bytes=round(row["written"]),
             alone_us=round(row["us"], 2))
        for name, row in sorted(found.items(), key=lambda item: -item[1]["read"])
    ]  # fmt: skip


def run(argv: Sequence[str], arguments: argparse.Namespace) -> None:
    check_published(arguments.models.split(","))
    for name in arguments.implementations.split(","):
        check_name("implementations", name, ("triton", "xla"))
    if arguments.step:
        step(arguments)
        return
    if jax.default_backend() != "gpu" or not shutil.which("ncu"):
        raise UsageError("the counters need an NVIDIA GPU and Nsight Compute's ncu")
    origin = provenance.collect(["python", "-m", "experiments.counters", *argv])
    device = devices.find(origin["device"])
    body = []
    with Log(arguments.results.replace("{device}", device.key if device else "gpu")) as log:
        for model in arguments.models.split(","):
            needed = mean_bytes(
                config_of(model), DTYPES[arguments.dtype], batch=arguments.batch, context=arguments.context, steps=1
            )
            for implementation in arguments.implementations.split(","):
                rows = kernels(profiled(model, implementation, arguments))
                total, date = sum(row["read_bytes"] for row in rows), provenance.now()
                for row in rows:
                    log.append(
                        dict(
                            op="counters", model=model, dtype=arguments.dtype, batch=arguments.batch,
                            rows=arguments.batch, context=arguments.context, implementation=implementation,
                            status="ok", step_bytes=round(needed), step_read_bytes=total,
                        ) | row | dict(date=date) | origin
                    )  # fmt: skip
                figures = (needed / 1e6, total / 1e6, 100 * total / needed)
                body.append([model, implementation, *(tables.number(figure, ".1f") for figure in figures)])
    print(tables.text(("model", "implementation", "MB needed", "MB read", "% of it"), body))
    print(f"Rows: {log.path}")


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # two processes share the device
    try:
        run(argv, parser().parse_args(argv))
    except (UsageError, ResultsError) as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
