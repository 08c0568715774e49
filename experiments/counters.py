"""What a decode step moves, by the GPU's own counters: bytes from and to memory, kernel by kernel.

    python -m experiments.counters [--models=llama-3.1-8b,llama-3.2-1b] [--levers=NAME,...] [--context=1024]

needs an NVIDIA GPU and Nsight Compute (`ncu`), which takes the kernels of one step one at a time: its times are those
of kernels alone, without what runs beside them, so only the bytes are compared. The step is measured as it ships and
with each of the levers left out (those of the ledger; none of them if empty). A row for each name of a kernel is
appended to the results. Beside the fields of every row (experiments/rows.py):

lever: what was left out, '' as the step ships; 'all kernels' is XLA's step.
kernel, calls: its name, and how often it runs in a step. read_bytes, written_bytes: of all its calls.
alone_us: of all its calls, each alone. step_bytes: what the whole step must read; step_read_bytes: what it did read.
"""

import argparse
import csv
import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments import provenance, tables
from experiments.cases import DTYPES
from experiments.decode_loop import Decoder, mean_bytes
from experiments.gpu import compile_all
from experiments.ledger_case import Levered
from experiments.levers import Lever, named
from experiments.models import config_of
from experiments.options import UsageError, check_published, fail
from experiments.row_log import Log, ResultsError, Row
from pallas_kernels.common import devices
from pallas_kernels.common.launch import launch

MARK = "mark"
"""The kernel that stands before each of the steps."""
READ, WRITTEN, TIME = "dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum"
UNITS = {
    "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "ns": 1e-3, "us": 1.0, "ms": 1e3, "nsecond": 1e-3,
    "usecond": 1.0, "msecond": 1e3,
}  # fmt: skip
"""In bytes and microseconds."""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--models", default="llama-3.1-8b,llama-3.2-1b", help="files of configs/models")
    found.add_argument("--levers", default="all kernels", help="names, with commas between")
    found.add_argument("--context", type=int, default=1024, help="positions in the cache")
    found.add_argument("--batch", type=int, default=1, help="sequences at a time")
    found.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    found.add_argument("--results", default="out/counters-{device}.jsonl", help="JSON lines that rows are appended to")
    found.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    return found


def chosen(arguments: argparse.Namespace) -> list[Lever]:
    """The levers whose steps are measured, the shipped step first."""
    return named([name for name in arguments.levers.split(",") if name])


def step(arguments: argparse.Namespace) -> None:
    """Runs one step of each lever where the profiler looks; in a process of its own, below it."""
    subjects = chosen(arguments)
    decoder = Decoder(config_of(arguments.models), DTYPES[arguments.dtype], 0)
    workload = Levered(decoder, subjects, batch=arguments.batch, context=arguments.context, steps=1)
    programs = compile_all([functools.partial(workload.compiled, lever.name) for lever in subjects], 0)
    mark = jax.jit(_mark).lower(jnp.zeros((1,))).compile()
    driver = ctypes.CDLL("libcuda.so.1")
    for marked in (False, True):
        for program in programs:
            state, before = jax.block_until_ready((workload.fresh(0), jnp.zeros((1,))))
            if marked:
                driver.cuProfilerStart()
            jax.block_until_ready(mark(before))
            jax.block_until_ready(program(decoder.weights, state, workload.rope))
            driver.cuProfilerStop()


def _mark(x: jax.Array) -> jax.Array:
    def kernel(refs, y_ref):
        y_ref[0] = refs.x[0]

    return launch(kernel, name=MARK, grid=(1,), inputs=dict(x=x), outputs=[x], num_warps=1, num_stages=1)[0]


def profiled(model: str, arguments: argparse.Namespace) -> list[dict[str, str]]:
    """What the profiler says of each launch of the steps: its table, with the line of units first.

    The steps run without it first, which leaves their programs in a cache: so the profiler follows the steps, and not
    XLA's search for their algorithms.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "counters.csv"
        steps = [
            sys.executable, "-m", "experiments.counters", "--step", f"--models={model}",
            f"--levers={arguments.levers}", f"--context={arguments.context}", f"--batch={arguments.batch}",
            f"--dtype={arguments.dtype}",
        ]  # fmt: skip
        ncu = [
            "ncu", "--profile-from-start", "off", "--graph-profiling", "node", "--clock-control", "none",
            "--cache-control", "none", "--metrics", f"{READ},{WRITTEN},{TIME}", "--csv", "--page", "raw",
            "--log-file", str(log),
        ]  # fmt: skip
        cached = os.environ | dict(
            JAX_COMPILATION_CACHE_DIR=str(Path(folder) / "programs"),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
        )
        for name, command in (("without the profiler", steps), ("with it", [*ncu, *steps])):
            began = time.monotonic()
            run = subprocess.run(command, capture_output=True, text=True, env=cached)
            print(f"{model}: the steps {name} took {time.monotonic() - began:.0f} s", flush=True)
            if run.returncode:
                break
        text = log.read_text() if log.exists() else ""
    lines = [line for line in text.splitlines() if not line.startswith("==")]
    if run.returncode or len(lines) < 3:
        said = (text + run.stdout + run.stderr).strip().splitlines()
        raise ResultsError(f"{model}: the steps {name}: {said[-1] if said else 'no output'}")
    return list(csv.DictReader(lines))


def by_step(lines: Sequence[dict[str, str]]) -> list[list[dict[str, str]]]:
    """The lines of each step, between its mark and the next, with the line of units first."""
    units, steps = lines[0], []
    for line in lines[1:]:
        if _name(line) == MARK:
            steps.append([units])
        elif steps:
            steps[-1].append(line)
    return steps


def _name(line: dict[str, str]) -> str:
    return line["Kernel Name"].split("(")[0]


def kernels(lines: Sequence[dict[str, str]]) -> list[Row]:
    """A row for each name, the one that reads most first."""
    units, found = lines[0], {}
    for line in lines[1:]:
        read, written, us = (float(line[name].replace(",", "")) * UNITS[units[name]] for name in (READ, WRITTEN, TIME))
        row = found.setdefault(_name(line), dict(calls=0, read=0.0, written=0.0, us=0.0))
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
    subjects = chosen(arguments)
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
            steps = by_step(profiled(model, arguments))
            if len(steps) != len(subjects):
                raise ResultsError(f"ncu: {model}: expected the kernels of {len(subjects)} steps, found {len(steps)}")
            for lever, lines in zip(subjects, steps, strict=True):
                rows = kernels(lines)
                total, date = sum(row["read_bytes"] for row in rows), provenance.now()
                for row in rows:
                    log.append(
                        dict(
                            op="counters", model=model, dtype=arguments.dtype, batch=arguments.batch,
                            rows=arguments.batch, context=arguments.context, implementation=lever.implementation,
                            lever=lever.name, status="ok", step_bytes=round(needed), step_read_bytes=total,
                        ) | row | dict(date=date) | origin
                    )  # fmt: skip
                figures = (needed / 1e6, total / 1e6, 100 * total / needed)
                without = lever.name or "as shipped"
                body.append([model, without, *(tables.number(figure, ".1f") for figure in figures)])
    print(tables.text(("model", "step without", "MB needed", "MB read", "% of it"), body))
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
