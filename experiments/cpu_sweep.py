"""The sweep without a GPU: what can be known there of tiles, and what this processor itself reaches.

No kernel is timed. In this order: the tiles that GPUs can run are counted, a sample of tiles is lowered for CUDA, a
reduced grid is run in Pallas's interpreter against the reference, and XLA's implementation is timed on the processor.
"""

import collections
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from experiments import gpu, grid, provenance, tables
from experiments.cases import Case
from experiments.gpu import Program
from experiments.gpu_sweep import progress
from experiments.options import Options
from experiments.row_log import Log, Row
from experiments.rows import FEASIBLE, INTERPRET, LOWER, XLA_CPU, blank, rounded
from experiments.tables import Number, number
from pallas_kernels.common.devices import DEVICES, Device
from pallas_kernels.common.tuned import current_device
from tokenspeed import measure

CPU_COLD_BYTES = 128 << 20
MOST_COPIES = 8
CPU_SAMPLES, CPU_SECONDS = 3, 0.2
OK_LOWER, OK_INTERPRET, OK_XLA_CPU = (
    "ok (lowered for CUDA, not run)",
    "ok (interpret, not timed)",
    "ok (XLA on this processor)",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A row and how to complete it: `do` with what `prepare`, which may run beside others, returned."""

    row: Row
    do: Callable[[Any], Row]
    prepare: Callable[[], Any] = lambda: None


def run(options: Options, cases: list[Case], log: Log, origin: Row) -> int:
    """Completes and appends every row that is missing; returns how many the time limit left undone."""
    print("No NVIDIA GPU here: no kernel is timed. Tiles are checked in interpret mode, lowered for CUDA and judged")
    print("against the limits of GPUs; the only times are XLA's, on this processor.")
    begin = time.monotonic()
    stages = [_feasible_jobs, _lower_jobs, _interpret_jobs, _xla_jobs]
    jobs = [[job for job in stage(options, cases, origin) if job.row not in log] for stage in stages]
    pool = ThreadPoolExecutor(options.compile_workers or gpu.cores())
    with progress(sum(map(len, jobs)), unit="row") as bar:
        try:
            for stage in jobs:
                prepared = [pool.submit(job.prepare) for job in stage]
                for job, ready in zip(stage, prepared):
                    if options.time_limit_s and time.monotonic() - begin > options.time_limit_s:
                        return int(bar.total - bar.n)
                    bar.set_description(f"{job.row['mode']} {job.row['op']}", refresh=sys.stderr.isatty())
                    log.append(job.row | job.do(ready.result()) | dict(date=provenance.now()))
                    bar.update()
            return 0
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _feasible_jobs(options: Options, cases: list[Case], origin: Row) -> list[Job]:
    def do(case: Case, _) -> Row:
        space = grid.space_of(case, options)
        counts = {}
        for key in options.devices:
            verdicts = [case.tiles.feasible(tiles, case.shape, DEVICES[key]) for tiles in space]
            reasons = collections.Counter(verdict.reason.split(":")[0] for verdict in verdicts if not verdict)
            counts[key] = dict(feasible=sum(map(bool, verdicts)), of=len(space), reasons=dict(reasons))
        return dict(status="ok (feasible tiles counted)", feasible=counts)

    return [Job(blank(case, FEASIBLE, None, origin), functools.partial(do, case)) for case in cases]


def _lower_jobs(options: Options, cases: list[Case], origin: Row) -> list[Job]:
    targets = [DEVICES[key] for key in options.devices]

    def do(case: Case, tiles: Any, _) -> Row:
        verdicts = {device.key: case.tiles.feasible(tiles, case.shape, device) for device in targets}
        fitting = [device for device in targets if verdicts[device.key]]
        found = dict(feasible={key: verdict.reason for key, verdict in verdicts.items()})
        if not fitting:
            return found | dict(status=f"infeasible: {next(iter(verdicts.values())).reason}")
        begin = time.perf_counter()
        try:
            lower(case, tiles, fitting[0])
        except Exception as error:
            return found | dict(status=f"lowering failed: {gpu.reason_of(error)}")
        return found | dict(status=OK_LOWER, compile_s=rounded(time.perf_counter() - begin))

    return [
        Job(blank(case, LOWER, tiles, origin), functools.partial(do, case, tiles))
        for case in cases
        for tiles in grid.tiles_of(case, options, targets[-1], options.lower_tiles)
    ]  # fmt: skip


def lower(case: Case, tiles: Any, device: Device) -> str:
    """Lowers one call for CUDA, by way of a mesh that only describes the GPU; returns the module as text."""
    described = jax.sharding.AbstractDevice(device_kind=device.name, num_cores=device.num_sms, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=described)
    key = jax.random.key(0)
    state, streamed = jax.eval_shape(case.state, key), jax.eval_shape(case.streamed, key)
    with jax.sharding.use_abstract_mesh(mesh):
        call = jax.jit(lambda state, streamed: case.call(state, streamed, tiles, "triton"))
        return call.trace(state, streamed).lower(lowering_platforms=("cuda",)).as_text()


def _interpret_jobs(options: Options, cases: list[Case], origin: Row) -> list[Job]:
    contexts = (options.interpret_context,)
    small = grid.all_cases(
        options.ops, (options.interpret_model,), options.interpret_rows, options.dtypes, contexts
    )  # fmt: skip
    target = current_device()
    once = gpu.Plan(calls=1, copies=1, passes=1)

    @functools.cache
    def bench(case: Case) -> gpu.Bench:
        return gpu.Bench(case, once, gpu.Machine(), options.seed)

    def compile(case: Case, tiles: Any) -> Program:
        verdict = case.tiles.feasible(tiles, case.shape, target)
        if not verdict:
            return Program(None, None, None, f"infeasible: {verdict.reason}")
        return gpu.compile_case(case, tiles, "interpret")

    def do(case: Case, number: int, program: Program) -> Row:
        if program.once is None:
            return dict(status=program.reason)
        try:
            found = bench(case).check(program, number)
        except Exception as error:
            return dict(status=f"run failed: {gpu.reason_of(error)}")
        return dict(status=found.reason or OK_INTERPRET, error=found.error, error_xla=found.error_xla)

    return [
        Job(
            blank(case, INTERPRET, tiles, origin),
            functools.partial(do, case, i),
            functools.partial(compile, case, tiles),
        )
        for case in small
        for i, tiles in enumerate(grid.tiles_of(case, options, target, options.interpret_tiles))
    ]


def _xla_jobs(options: Options, cases: list[Case], origin: Row) -> list[Job]:
    ceiling = functools.cache(measure.cpu_read_ceiling_gbps)
    timed = [case for case in grid.of_options(dataclasses.replace(options, models=options.cpu_models or ("tiny",)))]

    def do(case: Case, _) -> Row:
        one = gpu.streamed_bytes(case)
        copies = max(1, min(MOST_COPIES, CPU_COLD_BYTES // one))
        how = gpu.Plan(calls=copies, copies=copies, passes=1)
        program = gpu.compile_case(case, None, "xla", how)
        if program.chain is None:
            return dict(status=program.reason)
        timing = gpu.Bench(case, how, gpu.Machine(), options.seed).time(program, CPU_SAMPLES, CPU_SECONDS)
        return dict(
            status=OK_XLA_CPU, xla_us=rounded(timing.median_us), samples=timing.samples, calls=copies,
            ceiling_gbps=round(ceiling(), 2),
        )  # fmt: skip

    if not options.cpu_models:
        return []
    return [Job(blank(case, XLA_CPU, None, origin), functools.partial(do, case)) for case in timed]


def summary(rows: list[Row]) -> str:
    """What was found, a table a stage, each saying what its numbers are."""
    parts = [_feasible_table(rows), _lowered(rows), _checked(rows), _xla_table(rows)]
    return "\n" + "\n\n".join(part for part in parts if part) + "\n"


def _of(rows: list[Row], mode: str) -> list[Row]:
    return [row for row in rows if row.get("mode") == mode]


def _lead(row: Row) -> list[Any]:
    return [row["op"], row["model"], Number(row["rows"], ".0f"), number(row["context"], ".0f"), row["dtype"]]


LEAD = ("op", "model", "rows", "context", "dtype")


def _feasible_table(rows: list[Row]) -> str:
    counted = _of(rows, FEASIBLE)
    if not counted:
        return ""
    devices = list(dict.fromkeys(key for row in counted for key in row["feasible"]))
    body, reasons = [], collections.Counter()
    for row in counted:
        counts = [row["feasible"].get(key) for key in devices]
        body.append([*_lead(row), *[f"{c['feasible']} of {c['of']}" if c else "-" for c in counts]])
        for key, count in row["feasible"].items():
            reasons.update({f"{key}: {reason}": number for reason, number in count["reasons"].items()})
    why = "; ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())) or "none is infeasible"
    title = "Tiles of the search space that each GPU can run, by the rules of `feasible` (nothing was run):"
    return f"{title}\n{tables.text((*LEAD, *devices), body)}\nWhy not, tiles in all: {why}"


def _lowered(rows: list[Row]) -> str:
    tried = _of(rows, LOWER)
    if not tried:
        return ""
    done = sum(row["status"].startswith("ok") for row in tried)
    return f"Lowered for CUDA, not run: {done} of a sample of {len(tried)} tiles.{_reasons(tried)}"


def _checked(rows: list[Row]) -> str:
    tried = _of(rows, INTERPRET)
    if not tried:
        return ""
    header, body = (*LEAD, "right", "tried", "largest error", "XLA's error"), []
    for members in tables.by_case(tried).values():
        right = [row for row in members if row["status"] == OK_INTERPRET]
        errors = [[row[field] for row in right] for field in ("error", "error_xla")]
        body.append([
            *_lead(members[0]), Number(len(right), ".0f"), Number(len(members), ".0f"),
            *[number(max(values) if values else None, ".2g") for values in errors],
        ])  # fmt: skip
    title = "Tiles run in Pallas's interpreter against the float32 reference (right or wrong; not timed):"
    return f"{title}\n{tables.text(header, body)}{_reasons(tried)}"


def _reasons(rows: list[Row]) -> str:
    bad = [row for row in rows if not row["status"].startswith("ok")]
    return "".join(
        f"\n  {row['op']} {row['model']} rows={row['rows']} {tables.tiles_text(row['tiles'])}: {row['status']}"
        for row in bad[:10]
    ) + (f"\n  and {len(bad) - 10} more" if len(bad) > 10 else "")  # fmt: skip


def _xla_table(rows: list[Row]) -> str:
    timed = _of(rows, XLA_CPU)
    if not timed:
        return ""
    body = []
    for row in timed:
        us, ceiling = row["xla_us"], row["ceiling_gbps"]
        gbps = us and row["bytes"] / us / 1e3
        body.append([
            *_lead(row), number(us, ".0f"), number(gbps), number(ceiling), number(gbps and 100 * gbps / ceiling, ".1f"),
        ])  # fmt: skip
    header = (*LEAD, "XLA us", "XLA GB/s", "read ceiling GB/s", "% of it")
    title = "XLA's implementation on this processor, against its own read ceiling (no Pallas kernel is in this table):"
    return f"{title}\n{tables.text(header, body)}"
