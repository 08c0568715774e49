"""What each thing that makes a decode step fast gives it, and what it does to the numbers.

    python -m experiments.ablation [--models=llama-3.1-8b,llama-3.2-1b] [--batch=1] [--ablations=NAME,...]

needs an NVIDIA GPU. The greedy step of `experiments.decode` is timed as it ships and with one thing left out at a time
(experiments/ablation/ablations.py), all in turn in one run, on the same weights and sequences. A record for each (kind
'ablation' of experiments/bench/kinds.py) is appended to the results.
"""

import gc
import sys
from collections.abc import Iterator, Sequence

from experiments.ablation.ablations import ABLATIONS, SHIPPED, Ablation, Step, named
from experiments.ablation.options import Options
from experiments.ablation.step import AblatedWorkload, Drift
from experiments.ablation.table import ablation_table
from experiments.bench import log as logs
from experiments.bench import options as command_line
from experiments.bench import provenance, record, tables
from experiments.bench.device import DeviceLost, in_path, needed_gpu, probe_device
from experiments.bench.log import RESULTS, Log
from experiments.bench.models import DTYPES, config_of
from experiments.bench.record import Record
from experiments.bench.workload import Decoder, mean_bytes
from experiments.decode.case import Case, Found
from tokenspeed.measure.read_ceiling import gpu_read_ceiling_gbps

MEASURING = ("experiments.ablation.step", "experiments.decode.case")


def measured(step: Step, ablations: Sequence[Ablation], options: Options) -> Iterator[Record]:
    """The fields of the shipped step's record and of each ablation's; the model is on the device while they come."""
    decoder = Decoder(step.config, DTYPES[step.dtype], options.seed)
    workload = AblatedWorkload(decoder, ablations, batch=step.batch, context=step.context, steps=options.steps)
    case = Case(workload, [one.name for one in ablations])
    found = case.measure(options.sequences, options.repeats)
    drift = Drift(workload, [one for one in ablations if not found[one.name].failure], options.sequences)
    for one in ablations:
        own = found[one.name]
        fields = blank(step, one, own, options.steps) | figures(one, own, found[SHIPPED.name])
        yield fields if own.failure else fields | drift.of(one)
    if any(own.failure for own in found.values()):
        probe_device()


def blank(step: Step, ablation: Ablation, own: Found, steps: int) -> Record:
    """The fields of an ablation without what was measured."""
    predicted = ablation.predicted(step)
    moved = mean_bytes(step.config, DTYPES[step.dtype], batch=step.batch, context=step.context, steps=steps)
    return dict(
        model=step.model,
        dtype=step.dtype,
        batch=step.batch,
        context=step.context,
        ablation=ablation.name,
        strategy=ablation.strategy,
        without=ablation.without,
        tried=ablation.tried,
        implementation=ablation.implementation,
        status=own.status,
        predicted_us=None if predicted.us is None else round(predicted.us, 1),
        predicted_bytes=predicted.bytes,
        predicted_launches=predicted.launches,
        tokens_checked=0,
        floor_ms=round(moved / step.ceiling_gbps / 1e6, 6),
        ceiling_gbps=round(step.ceiling_gbps, 1),
        samples=len(own.step_ms),
        steps=steps,
    )


def figures(ablation: Ablation, own: Found, shipped: Found) -> Record:
    """What was measured, as fields; a gain only where both times count."""
    if own.failure:
        return {}
    low, median, high = own.percentiles
    pairs = [(tokens, shipped.tokens.get(sequence)) for sequence, tokens in own.tokens.items()]
    fields: Record = dict(
        ms_per_token=round(median, 6),
        ms_p5=round(low, 6),
        ms_p95=round(high, 6),
        tokens_checked=sum(tokens.size for tokens, _ in pairs),
        tokens_as_shipped=sum(int((a == b).sum()) for a, b in pairs if b is not None),
    )
    if shipped.status == "ok" and own.status == "ok":
        base = shipped.percentiles[1]
        gain_us = 1e3 * (base - median if ablation.tried else median - base)
        fields |= dict(base_ms=round(base, 6), gain_us=None if ablation is SHIPPED else round(gain_us, 2))
    return fields


def run(options: Options, command: str) -> int:
    device = needed_gpu("the ablation")
    ablations = named(options.ablations or [one.name for one in ABLATIONS])
    origin = provenance.collect(command, *MEASURING)
    ceiling = gpu_read_ceiling_gbps()
    print(f"Read ceiling of this {origin['device']}, measured now: {ceiling:.1f} GB/s.", flush=True)
    swept = logs.read(RESULTS / f"sweep-{device.key}.jsonl")
    records: list[Record] = []
    with Log(in_path(options.results)) as log:
        try:
            for model in options.models:
                step = Step(
                    model=model, config=config_of(model), batch=options.batch, context=options.context,
                    dtype=options.dtype, ceiling_gbps=ceiling, device=device,
                    sweep=[found for found in swept if found["model"] == model],
                )  # fmt: skip
                for fields in measured(step, ablations, options):
                    records.append(record.new("ablation", **fields, **origin, date=provenance.now()))
                    log.append(records[-1])
                gc.collect()  # a cycle would keep the model while the next is made
        except DeviceLost as error:
            print(f"The GPU stopped answering ({error}).")
            return 1
    print(tables.text(*ablation_table(records)))
    print(f"Records: {log.path}")
    return 0


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.ablation", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
