"""What a decode step moves, by the GPU's own counters: bytes from and to memory, kernel by kernel.

    python -m experiments.ablation.counters [--models=llama-3.1-8b] [--ablations=NAME,...] [--results=FILE]

needs an NVIDIA GPU and Nsight Compute (`ncu`), which takes the kernels of one step one at a time: its times are those
of kernels alone, without what runs beside them, so only the bytes are compared. The step is measured as it ships and
without each of the ablations that are named ("all kernels" leaves XLA's step). A record for each name of a kernel (kind
'counters' of experiments/bench/kinds.py) is appended to the results.
"""

import csv
import ctypes
import dataclasses
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

import pallas_kernels as pk
from experiments.ablation.ablations import named
from experiments.ablation.options import Options as AblationOptions
from experiments.ablation.step import AblatedWorkload
from experiments.bench import options as command_line
from experiments.bench import provenance, record, tables
from experiments.bench.compiling import compile_all
from experiments.bench.device import in_path, needed_gpu
from experiments.bench.errors import ResultsError, UsageError
from experiments.bench.log import Log
from experiments.bench.models import DTYPES, config_of
from experiments.bench.record import Record
from experiments.bench.workload import Decoder, mean_bytes

MEASURING = ("experiments.ablation.step",)
MARK = "mark"
"""The kernel that stands before each of the steps."""
READ, WRITTEN, TIME = "dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum"
UNITS = {
    "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "ns": 1e-3, "us": 1.0, "ms": 1e3, "nsecond": 1e-3,
    "usecond": 1.0, "msecond": 1e3,
}  # fmt: skip
"""In bytes and microseconds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(AblationOptions):
    """Which steps are measured.

    Attributes:
        profiled: run one step of each where the profiler looks, and nothing else: what this program starts itself as.
    """

    ablations: tuple[str, ...] = ("all kernels",)
    results: str = "out/counters-{device}.jsonl"
    profiled: bool = False


def step(options: Options) -> None:
    """Runs one step of each ablation where the profiler looks; in a process of its own, below it."""
    subjects = named(options.ablations)
    decoder = Decoder(config_of(options.models[0]), DTYPES[options.dtype], 0)
    workload = AblatedWorkload(decoder, subjects, batch=options.batch, context=options.context, steps=1)
    programs = compile_all([functools.partial(workload.compiled, one.name) for one in subjects])
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

    return pk.launch(kernel, name=MARK, grid=(1,), inputs=dict(x=x), outputs=[x], num_warps=1, num_stages=1)[0]


def profiled(model: str, options: Options) -> list[dict[str, str]]:
    """What the profiler says of each launch of the steps: its table, with the line of units first.

    The steps run without it first, which leaves their programs in a cache: so the profiler follows the steps, and not
    XLA's search for their algorithms.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "counters.csv"
        steps = [
            sys.executable, "-m", "experiments.ablation.counters", "--profiled", f"--models={model}",
            f"--ablations={','.join(options.ablations)}", f"--context={options.context}", f"--batch={options.batch}",
            f"--dtype={options.dtype}",
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


def kernels(lines: Sequence[dict[str, str]]) -> list[Record]:
    """The fields of each name of a kernel, the one that reads most first."""
    units, found = lines[0], {}
    for line in lines[1:]:
        read, written, us = (float(line[name].replace(",", "")) * UNITS[units[name]] for name in (READ, WRITTEN, TIME))
        total = found.setdefault(_name(line), dict(calls=0, read=0.0, written=0.0, us=0.0))
        total["calls"] += 1
        total["read"] += read
        total["written"] += written
        total["us"] += us
    return [
        dict(
            kernel=name, calls=total["calls"], read_bytes=round(total["read"]), written_bytes=round(total["written"]),
            alone_us=round(total["us"], 2),
        )
        for name, total in sorted(found.items(), key=lambda item: -item[1]["read"])
    ]  # fmt: skip


def run(options: Options, command: str) -> None:
    subjects = named(options.ablations)
    needed_gpu("the profiler")
    if options.profiled:
        step(options)
        return
    if not shutil.which("ncu"):
        raise UsageError("the profiler needs Nsight Compute's ncu, and there is none here")
    origin = provenance.collect(command, *MEASURING)
    body = []
    with Log(in_path(options.results)) as log:
        for model in options.models:
            needed = mean_bytes(
                config_of(model), DTYPES[options.dtype], batch=options.batch, context=options.context, steps=1
            )
            steps = by_step(profiled(model, options))
            if len(steps) != len(subjects):
                raise ResultsError(f"ncu: {model}: expected the kernels of {len(subjects)} steps, found {len(steps)}")
            for one, lines in zip(subjects, steps, strict=True):
                found = kernels(lines)
                total, date = sum(fields["read_bytes"] for fields in found), provenance.now()
                for fields in found:
                    log.append(
                        record.new(
                            "counters", model=model, dtype=options.dtype, batch=options.batch,
                            context=options.context, implementation=one.implementation, ablation=one.name,
                            status="ok", step_bytes=round(needed), step_read_bytes=total, **fields, **origin, date=date,
                        )
                    )  # fmt: skip
                shown = (needed / 1e6, total / 1e6, 100 * total / needed)
                body.append([model, one.name or "as shipped", *(tables.number(figure, ".1f") for figure in shown)])
    print(tables.text(("model", "step without", "MB needed", "MB read", "% of it"), body))
    print(f"Records: {log.path}")


def main(argv: list[str] | None = None) -> int:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # two processes share the device
    return command_line.main(run, Options, "experiments.ablation.counters", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
