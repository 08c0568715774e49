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

import pallas_kernels as pk
from experiments.bench import cases, operands, provenance, record, tile_bench
from experiments.bench.cases import Case
from experiments.bench.compiling import cores
from experiments.bench.device import reason_of
from experiments.bench.log import Log
from experiments.bench.record import Record, finite, rounded
from experiments.bench.tile_bench import Machine, Plan, Program
from experiments.sweep import grid
from experiments.sweep.gpu import progress
from experiments.sweep.options import Options
from pallas_kernels import Device
from tokenspeed.measure import read_ceiling

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
    """A record and how to complete it: `do` with what `prepare`, which may run beside others, returned."""

    record: Record
    do: Callable[[Any], Record]
    prepare: Callable[[], Any] = lambda: None


def run(options: Options, found: list[Case], log: Log, origin: Record) -> int:
    """Completes and appends every record that is missing; returns how many the time limit left undone."""
    print("No NVIDIA GPU here: no kernel is timed. Tiles are checked in interpret mode, lowered for CUDA and judged")
    print("against the limits of GPUs; the only times are XLA's, on this processor.")
    begin = time.monotonic()
    stages = [_feasible_jobs, _lower_jobs, _interpret_jobs, _xla_jobs]
    jobs = [[job for job in stage(options, found, origin) if job.record not in log] for stage in stages]
    pool = ThreadPoolExecutor(options.compile_workers or cores())
    with progress(sum(map(len, jobs)), unit="record") as bar:
        try:
            for stage in jobs:
                prepared = [pool.submit(job.prepare) for job in stage]
                for job, ready in zip(stage, prepared):
                    if options.time_limit_s and time.monotonic() - begin > options.time_limit_s:
                        return int(bar.total - bar.n)
                    bar.set_description(f"{job.record['kind']} {job.record['op']}", refresh=sys.stderr.isatty())
                    log.append(job.record | job.do(ready.result()) | dict(date=provenance.now()))
                    bar.update()
            return 0
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _blank(kind: str, case: Case, tiles: Any, origin: Record) -> Record:
    """The record of a job before it is done."""
    return record.new(kind, **case.tile_fields(tiles), status="", **origin)


def _feasible_jobs(options: Options, found: list[Case], origin: Record) -> list[Job]:
    def do(case: Case, _) -> Record:
        space = grid.space_of(case, options)
        counts = {}
        for key in options.devices:
            verdicts = [case.known.feasible(tiles, case.shape, pk.DEVICES[key]) for tiles in space]
            reasons = collections.Counter(verdict.reason.split(":")[0] for verdict in verdicts if not verdict)
            counts[key] = dict(feasible=sum(map(bool, verdicts)), of=len(space), reasons=dict(reasons))
        return dict(status="ok (feasible tiles counted)", feasible=counts)

    return [Job(_blank("feasible_tiles", case, None, origin), functools.partial(do, case)) for case in found]


def _lower_jobs(options: Options, found: list[Case], origin: Record) -> list[Job]:
    targets = [pk.DEVICES[key] for key in options.devices]

    def do(case: Case, tiles: Any, _) -> Record:
        verdicts = {device.key: case.known.feasible(tiles, case.shape, device) for device in targets}
        fitting = [device for device in targets if verdicts[device.key]]
        result = dict(feasible={key: verdict.reason for key, verdict in verdicts.items()})
        if not fitting:
            return result | dict(status=f"infeasible: {next(iter(verdicts.values())).reason}")
        begin = time.perf_counter()
        try:
            lower(case, tiles, fitting[0])
        except Exception as error:
            return result | dict(status=f"lowering failed: {reason_of(error)}")
        return result | dict(status=OK_LOWER, compile_s=rounded(time.perf_counter() - begin))

    return [
        Job(_blank("lowered_tile", case, tiles, origin), functools.partial(do, case, tiles))
        for case in found
        for tiles in grid.tiles_of(case, options, targets[-1], options.lower_tiles)
    ]  # fmt: skip


def lower(case: Case, tiles: Any, device: Device) -> str:
    """Lowers one call for CUDA, by way of a mesh that only describes the GPU; returns the module as text."""
    described = jax.sharding.AbstractDevice(device_kind=device.name, num_cores=device.num_sms, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=described)
    call = case.call.cut(tiles)
    state = jax.eval_shape(lambda key: operands.state(call, key), jax.random.key(0))
    streamed = call.arguments[operands.streamed_name(call)]
    with jax.sharding.use_abstract_mesh(mesh):
        run = jax.jit(lambda state, streamed: cases.run(call, state, streamed, tiles, "triton"))
        return run.trace(state, streamed).lower(lowering_platforms=("cuda",)).as_text()


def _interpret_jobs(options: Options, _: list[Case], origin: Record) -> list[Job]:
    contexts = (options.interpret_context,)
    small = grid.all_cases(
        options.ops, (options.interpret_model,), options.interpret_rows, options.dtypes, contexts, options.page_sizes,
        options.kv_dtypes,
    )  # fmt: skip
    target = pk.current_device()
    once = Plan(calls=1, copies=1, passes=1)

    benches = {}

    def bench(number: int, tiles: Any) -> tile_bench.Bench:
        case = small[number]
        form = number, case.fixed_point(tiles), case.leaves_floats(tiles)
        if form not in benches:
            benches[form] = tile_bench.Bench(case.call.cut(tiles), once, Machine(), options.seed)
        return benches[form]

    def compile(case: Case, tiles: Any) -> Program:
        verdict = case.known.feasible(tiles, case.shape, target)
        if not verdict:
            return Program(None, None, None, f"infeasible: {verdict.reason}")
        return tile_bench.compile_call(case.call.cut(tiles), tiles, "interpret")

    def do(number: int, draw: int, tiles: Any, program: Program) -> Record:
        if program.once is None:
            return dict(status=program.reason)
        try:
            verdict = bench(number, tiles).check(program, draw)
        except Exception as error:
            return dict(status=f"run failed: {reason_of(error)}")
        return dict(status=verdict.reason or OK_INTERPRET, error=finite(verdict.error), error_xla=verdict.error_xla)

    return [
        Job(
            _blank("interpreted_tile", case, tiles, origin),
            functools.partial(do, number, i, tiles),
            functools.partial(compile, case, tiles),
        )
        for number, case in enumerate(small)
        for i, tiles in enumerate(grid.tiles_of(case, options, target, options.interpret_tiles))
    ]


def _xla_jobs(options: Options, _: list[Case], origin: Record) -> list[Job]:
    if not options.cpu_models:
        return []
    ceiling = functools.cache(read_ceiling.cpu_read_ceiling_gbps)

    def do(case: Case, _) -> Record:
        one = tile_bench.streamed_bytes(case.xla)
        copies = max(1, min(MOST_COPIES, CPU_COLD_BYTES // one))
        how = Plan(calls=copies, copies=copies, passes=1)
        program = tile_bench.compile_call(case.xla, None, "xla", how)
        if program.chain is None:
            return dict(status=program.reason)
        timing = tile_bench.Bench(case.xla, how, Machine(), options.seed).time(program, CPU_SAMPLES, CPU_SECONDS)
        return dict(
            status=OK_XLA_CPU, xla_us=rounded(timing.median_us), samples=timing.samples, calls=copies,
            bytes=case.xla.cost.bytes, ceiling_gbps=round(ceiling(), 2),
        )  # fmt: skip

    timed = grid.of_options(dataclasses.replace(options, models=options.cpu_models))
    return [Job(_blank("xla_on_cpu", case, None, origin), functools.partial(do, case)) for case in timed]
