"""One persistent launch that streams all layers of a model: what the barriers between its stages cost.

    python -m experiments.persistent [--variants=five,tiles] [--workloads=1b-bf16,8b-int4] [--best=2] [--samples=11]

needs an NVIDIA GPU from Hopper on with as many multiprocessors as there are programs, 132 or 128, since all wait for
each other; 8 GB of its memory, and two minutes. Every program streams its share of each
stage's weights (qkv, attention, which has none, out, gate_up, down) through a ring of shared memory; between stages
programs wait for each other as the variant says. No arithmetic but a checksum, which must be that of every chunk (or
of every word) in its order. Timed is the slope over calls of a program of twelve launches; a record of each (kind
'persistent' of experiments/bench/kinds.py) is appended to the results. Without a GPU every variant is lowered for an
H200, not run.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from experiments.bench import options as command_line
from experiments.bench import provenance, record, tables
from experiments.bench.compiling import compile_all
from experiments.bench.device import DeviceLost, gpu_here, in_path, probe_device, reason_of
from experiments.bench.errors import UsageError
from experiments.bench.log import Log
from experiments.bench.record import Record
from experiments.persistent import lowered
from experiments.persistent.measure import Measured, lower, measure, weights_of
from experiments.persistent.options import Options
from experiments.persistent.table import table
from experiments.persistent.variants import BOUNDS, STRICT, STUCK, VARIANTS
from experiments.persistent.watchdog import watching
from experiments.persistent.workloads import WORKLOADS, Workload
from tokenspeed.measure.read_ceiling import gpu_read_ceiling_gbps

MEASURING = ("experiments.persistent.measure",)
BATCH = 12
"""Variants that are compiled before they are measured."""
FIRST_SHARE = 0.8
"""Of the time, for the first workload where there are others."""


class Run:
    """One call of the command on a GPU: its records, the weights that are on the device, and the time that is left."""

    def __init__(self, options: Options, command: str, log: Log):
        self.options, self.log = options, log
        self.origin = provenance.collect(command, *MEASURING)
        self.begin = time.monotonic()
        self.records: list[Record] = []
        self.weights = jnp.zeros((0,), jnp.int32)
        self.ceiling = 0.0

    def all(self) -> None:
        self.ceiling = gpu_read_ceiling_gbps()
        print(f"Read ceiling of this {self.origin['device']}, measured now: {self.ceiling:.0f} GB/s.", flush=True)
        first, *others = self.options.workloads
        self.of(first, self.options.variants, FIRST_SHARE if others else 1.0)
        for name in others:
            self.of(name, dict.fromkeys([*BOUNDS, STRICT, *self.fastest(WORKLOADS[first])]), 1.0)

    def fastest(self, workload: Workload) -> list[str]:
        """Of the variants that are no bounds but could be a decode step."""
        found = [
            one for one in self.records
            if one["model"] == workload.model and one["weights"] == workload.weights and one["status"] == "ok"
            and one["barriers"] not in ("none", "signals") and one["structure"] != "late" and not one["design"]["trace"]
        ]  # fmt: skip
        return [one["variant"] for one in sorted(found, key=lambda one: one["median_us"])][: self.options.best]

    def of(self, workload: str, names: Iterable[str], share: float) -> None:
        """Compiles some, then measures one after the other (a compiler beside it would be timed too), then the next.

        None is begun when `share` of the time is over.
        """
        for batch in itertools.batched(names, BATCH):
            programs = itertools.repeat(None)
            if not self.over(share):
                begin = time.monotonic()
                # Mosaic GPU's lowering is not made for threads; XLA compiles one program while the next is lowered.
                programs = compile_all(_compiler(name, WORKLOADS[workload]) for name in batch)
                print(f"{workload}: {len(batch)} compiled in {time.monotonic() - begin:.0f} s", flush=True)
            for name, program in zip(batch, programs):
                if program is None or self.over(share):
                    print(f"{workload} {name}: not measured, its time is over", flush=True)
                else:
                    self.one(name, WORKLOADS[workload], program)

    def over(self, share: float) -> bool:
        return time.monotonic() - self.begin > share * self.options.seconds

    def one(self, name: str, workload: Workload, program: Callable | Exception) -> None:
        variant, begin = VARIANTS[name], time.monotonic()

        def hung() -> None:
            self.keep(name, workload, Measured(failure=f"no end after {self.options.hang_seconds} seconds"), begin)
            print(f"{name}: the launch hangs, and the device with it; what was left is not measured")

        with watching(self.options.hang_seconds, hung):
            try:
                if isinstance(program, Exception):
                    raise program
                found = measure(program, variant, workload, self.held(workload.shape(variant)), self.options.samples)
                self.keep(name, workload, found, begin)
            except Exception as error:  # whatever a compiler or a driver says: the next variant may be better
                self.keep(name, workload, Measured(failure=reason_of(error)), begin)
                probe_device()

    def held(self, shape: tuple[int, ...]) -> jax.Array:
        """The weights of that shape; those of another are gone by then."""
        if self.weights.shape != shape:
            self.weights.delete()
            self.weights = weights_of(shape)
        return self.weights

    def keep(self, name: str, workload: Workload, found: Measured, begin: float) -> None:
        seconds = time.monotonic() - begin
        fields = described(name, workload) | figures(found, workload, self.ceiling)
        one = record.new("persistent", **fields, seconds=round(seconds, 2), **self.origin, date=provenance.now())
        self.log.append(one)
        self.records.append(one)
        took = f"{found.timing.median_us:.1f} us" if found.timing else ""
        expected = " (as it must)" if name == STUCK and found.failure else ""
        if found.wait_cycles and found.wait_cycles_of_last:
            waits = (f"{a:.0f} ({b:.0f})" for a, b in zip(found.wait_cycles, found.wait_cycles_of_last))
            took += f", cycles of a layer's waits (of the last to come): {', '.join(waits)}"
        print(
            f"{workload.model} {workload.weights} {name}: {took or found.failure}{expected}, {seconds:.1f} s",
            flush=True,
        )


def _compiler(name: str, workload: Workload) -> Callable[[], Callable | Exception]:
    """Lowers a variant; what it returns compiles it, and has the error where there is one."""

    def compiled() -> Callable | Exception:
        try:
            return program.compile()
        except Exception as error:  # of any layer of the compiler; the others are compiled all the same
            return error

    try:
        program = lower(VARIANTS[name], workload)
    except Exception as error:
        failed = error
        return lambda: failed
    return compiled


def described(name: str, workload: Workload) -> Record:
    """What a record says of a variant, beside what was measured."""
    variant = VARIANTS[name]
    design = dataclasses.asdict(variant.design)
    words = {field: design.pop(field) for field in ("barriers", "copier")}
    chunks = workload.shape(variant)[0]
    return dict(
        model=workload.model, weights=workload.weights, variant=name, structure=variant.structure, design=design,
        **words,
        bytes=workload.bytes, streamed_bytes=chunks * variant.design.kib * 1024,
    )  # fmt: skip


def figures(found: Measured, workload: Workload, ceiling_gbps: float) -> Record:
    """What was measured, as fields of a record."""
    fields: Record = dict(status=found.status, ceiling_gbps=round(ceiling_gbps, 1) or None)
    if found.poll_cycles:
        fields |= zip(
            ("poll_cycles", "poll_cycles_least", "poll_cycles_most"), (round(c, 1) for c in found.poll_cycles)
        )
    for field in ("wait_cycles", "wait_cycles_of_last"):
        cycles = getattr(found, field)
        fields[field] = cycles and [round(c, 1) for c in cycles]
    if found.timing is None:
        return fields
    gbps = workload.bytes / found.timing.median_us / 1e3
    return fields | dict(
        median_us=round(found.timing.median_us, 3), p10_us=round(found.timing.p10_us, 3),
        p90_us=round(found.timing.p90_us, 3), samples=found.timing.samples, achieved_gbps=round(gbps, 1),
        percent_of_ceiling=round(100 * gbps / ceiling_gbps, 2),
    )  # fmt: skip


def multiprocessors() -> int:
    """Of this GPU."""
    return jax.devices()[0].core_count


def check_multiprocessors(options: Options) -> None:
    """Raises UsageError where a variant has more programs than run at a time: those would wait for ones that cannot."""
    there = multiprocessors()
    for name in options.variants:
        if (wanted := VARIANTS[name].design.programs) > there:
            raise UsageError(f"variants: {name} has {wanted} programs, and this GPU {there} multiprocessors")


def run(options: Options, command: str) -> int:
    if gpu_here() is None:
        print("There is no GPU here: every variant is lowered for an H200, none is run.")
        return int(not all(lowered.show(name, WORKLOADS[options.workloads[0]]) for name in options.variants))
    check_multiprocessors(options)
    lost = False
    with Log(in_path(options.results)) as log:
        found = Run(options, command, log)
        try:
            found.all()
        except DeviceLost as error:
            lost = True
            print(f"The device does not answer any more: {error}")
        print(tables.text(*table(found.records)))
    print(f"Records: {log.path}")
    failed = [one for one in found.records if one["status"] != "ok" and one["variant"] != STUCK]
    return int(lost or len(failed) == len(found.records))


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.persistent", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
