"""The sweep on a GPU: batches of tiles are compiled together, then checked and timed in quiet, a record each."""

import dataclasses
import functools
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from experiments.bench import provenance, record, tile_bench
from experiments.bench.cases import Case
from experiments.bench.compiling import compile_all, cores
from experiments.bench.device import DeviceLost, probe_device, reason_of
from experiments.bench.log import Log
from experiments.bench.record import Record, finite, rounded
from experiments.bench.tile_bench import Bench, Machine, Plan, Program
from experiments.sweep import grid
from experiments.sweep.options import Options
from pallas_kernels import Device

NEAR_BEST = 1.15
"""A tile gets the full number of samples when its first few are within this factor of the best so far."""
QUICK_SECONDS, FULL_SECONDS = 0.004, 0.01
BATCH_PER_WORKER = 3


def progress(total: int, unit: str = "tile") -> tqdm:
    """A progress bar with the time left; into a file, a line now and then."""
    often = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(total=total, unit=unit, smoothing=0.05, dynamic_ncols=True, mininterval=often)


@dataclasses.dataclass(frozen=True)
class Job:
    """A tile of a case; no tile stands for XLA's call, the first job of each case."""

    case: Case
    number: int
    tiles: Any

    def record(self, origin: Record, **found: Any) -> Record:
        """The job's record, with what was found."""
        fields = self.case.tile_fields(self.tiles) | dict(bytes=self.case.cost.bytes)
        return record.new("tile", **fields, **dict(status="") | found, **origin)


def jobs_of(case: Case, options: Options, device: Device, log: Log, origin: Record) -> list[Job]:
    """What is still to be done for a case: nothing, or XLA's call and the tiles without a record."""
    tiles = grid.timed_tiles(case, options, device)
    jobs = [Job(case, i, tile) for i, tile in enumerate(tiles)]
    left = [job for job in jobs if job.record(origin) not in log]
    return [Job(case, -1, None), *left] if left else []


class Sweep:
    """A sweep over cases; `run` leaves its records in the log."""

    def __init__(self, options: Options, log: Log, machine: Machine, device: Device, origin: Record):
        self.options, self.log, self.machine, self.device, self.origin = options, log, machine, device, origin
        self.workers = options.compile_workers
        self.copies: list[Any] | None = None
        self.benches: dict[Any, Bench] = {}
        self.xla_us: float | None = None
        self.best_us = float("inf")
        self.ceiling_gbps = 0.0

    def run(self, cases: list[Case]) -> int:
        """Returns the number of tiles left undone when the time limit was reached, else 0."""
        begin = time.monotonic()
        jobs = [job for case in cases for job in jobs_of(case, self.options, self.device, self.log, self.origin)]
        total = sum(job.tiles is not None for job in jobs)
        if not total:
            print("Every tile has its record already.")
            return 0
        self.ceiling_gbps = self.machine.ceiling_gbps()
        print(f"Read ceiling of this {self.device.name}, measured now: {self.ceiling_gbps:.0f} GB/s.")
        with progress(total) as bar:
            for batch in self._batches(jobs):
                if self._late(begin):
                    break
                bar.set_description("compiling", refresh=sys.stderr.isatty())
                programs = self._compile(batch)
                for i, job in enumerate(batch):
                    bar.set_description(f"{job.case.model} {job.case.op}", refresh=False)
                    self._do(job, programs[i])
                    programs[i] = None  # its memory goes with it
                    bar.update(job.tiles is not None)
                    if self._late(begin):
                        break
            return total - int(bar.n)

    def _plan(self, case: Case) -> Plan:
        return tile_bench.plan(case.call, self.options.calls, self.options.passes)

    def _late(self, begin: float) -> bool:
        limit = self.options.time_limit_s
        return bool(limit) and time.monotonic() - begin > limit

    def _batches(self, jobs: list[Job]) -> Iterator[list[Job]]:
        size = BATCH_PER_WORKER * (self.workers or cores())
        for start in range(0, len(jobs), size):
            yield jobs[start : start + size]

    def _compile(self, batch: list[Job]) -> list[Program | None]:
        def thunk(job: Job):
            case, how = job.case, self._plan(job.case)
            if job.tiles is None:
                return functools.partial(tile_bench.compile_call, case.xla, None, "xla", how)
            verdict = case.known.feasible(job.tiles, case.shape, self.device)
            if not verdict:
                return functools.partial(Program, None, None, None, f"infeasible: {verdict.reason}")
            call = case.call.cut(job.tiles)
            return functools.partial(tile_bench.compile_call, call, job.tiles, self.machine.implementation, how)

        return list(compile_all([thunk(job) for job in batch], self.workers))

    def _do(self, job: Job, program: Program) -> None:
        if job.tiles is None:
            self._begin_case(job.case, program)
            return
        found: Record = dict(
            ceiling_gbps=round(self.ceiling_gbps, 1), xla_us=rounded(self.xla_us), compile_s=rounded(program.compile_s)
        )
        lost = None
        try:
            found |= self._measured(job, program) if program.once else dict(status=program.reason)
        except Exception as error:
            found |= dict(status=f"run failed: {reason_of(error)}")
            try:
                probe_device()
            except DeviceLost as why:
                lost = why  # the record first: the next start is not to try this tile again
        self.log.append(job.record(self.origin, **found, date=provenance.now()))
        if lost is not None:
            raise lost

    def _begin_case(self, case: Case, program: Program) -> None:
        """Puts the case's operands on the device in place of the last one's, and times XLA's call."""
        self.benches, self.copies, self.xla_us = {}, None, None
        self.best_us = min((found["median_us"] for found in self._known(case)), default=float("inf"))
        reason = program.reason
        try:
            how = self._plan(case)
            plain = Bench(case.xla, how, self.machine, self.options.seed)
            self.copies = plain.copies
            if program.once is not None:
                self.xla_us = plain.time(program, self.options.samples, FULL_SECONDS).median_us
        except Exception as error:
            reason = f"run failed: {reason_of(error)}"
        if reason:
            tqdm.write(f"{case.model} {case.op}: XLA: {reason}")

    def _known(self, case: Case) -> list[Record]:
        alike = case.fields() | {name: self.origin[name] for name in ("device", "jax", "sources")}
        return [
            found
            for found in self.log.records
            if found["kind"] == "tile"
            and found["status"] == "ok"
            and all(found[name] == value for name, value in alike.items())
        ]

    def _bench(self, job: Job) -> Bench:
        """That of the case with activations as the tiles take and make them; all stream the same."""
        case = job.case
        form = case.fixed_point(job.tiles), case.leaves_floats(job.tiles)
        if form not in self.benches:
            call, how = case.call.cut(job.tiles), self._plan(case)
            self.benches[form] = Bench(call, how, self.machine, self.options.seed, self.copies)
        return self.benches[form]

    def _measured(self, job: Job, program: Program) -> Record:
        if self.copies is None:
            raise MemoryError("the case's operands could not be made")
        bench, samples = self._bench(job), self.options.samples
        verdict = bench.check(program, job.number)
        found = dict(
            error=finite(verdict.error), error_xla=verdict.error_xla, calls=bench.plan.calls * bench.plan.passes
        )
        if verdict.reason:
            return found | dict(status=verdict.reason)
        timing = bench.time(program, min(self.options.quick_samples, samples), QUICK_SECONDS)
        if timing.median_us <= NEAR_BEST * self.best_us and samples > timing.samples:
            timing = bench.time(program, samples, FULL_SECONDS)
        self.best_us = min(self.best_us, timing.median_us)
        gbps = job.case.cost.bytes / timing.median_us / 1e3
        return found | dict(
            status="ok",
            median_us=rounded(timing.median_us),
            p10_us=rounded(timing.p10_us),
            p90_us=rounded(timing.p90_us),
            samples=timing.samples,
            achieved_gbps=round(gbps, 1),
            percent_of_ceiling=round(100 * gbps / self.ceiling_gbps, 2),
        )
