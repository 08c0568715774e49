"""The ledger: what each lever gives a whole decode step, and what it does to the numbers.

    python -m experiments.ledger [--models=llama-3.1-8b,llama-3.2-1b] [--context=1024] [--batch=1] [--levers=NAME,...]

needs an NVIDIA GPU. The greedy step of `experiments.decode` is timed as it ships and with one lever left out at a time
(experiments/levers.py), all in turn in one run, on the same weights and sequences. A row for each is appended to the
results. Beside the fields of every row (experiments/rows.py):

lever, strategy, without, tried: what was left out and what took its place; a `tried` lever is not in the shipped step,
    and what is timed is the step with it. The row without a lever is the step as it ships.
ms_per_token, ms_p5, ms_p95, samples, steps: of one step, as in `experiments.decode`. base_ms: as shipped, in this run.
gain_us: what the lever gives the step. predicted_us, predicted_bytes, predicted_launches: by arithmetic, before.
drift, drift_kl, drift_max: the logits after one step against float64 on the same weights and cache: RMS of the
    difference over the RMS of the logits, the mean Kullback-Leibler divergence, the largest difference.
tokens_checked, tokens_as_shipped: drawn, each the same in every run, and how many of them the shipped step draws too.
"""

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence

import jax

from experiments import ledger_tables, provenance, row_log, tables
from experiments.cases import DTYPES
from experiments.decode_case import Case, Found
from experiments.decode_loop import Decoder, mean_bytes
from experiments.gpu import DeviceLost, probe_device
from experiments.ledger_case import Drift, Levered
from experiments.levers import LEVERS, SHIPPED, Lever, Step, named
from experiments.models import config_of
from experiments.options import UsageError, check_published, fail
from experiments.report import RESULTS
from experiments.row_log import Log, ResultsError, Row
from pallas_kernels.common import devices
from pallas_kernels.common.checks import MAX_ROWS
from tokenspeed import measure


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--models", default="llama-3.1-8b,llama-3.2-1b", help="files of configs/models")
    found.add_argument("--context", type=int, default=1024, help="positions in the cache before the first step")
    found.add_argument("--batch", type=int, default=1, help="sequences at a time")
    found.add_argument("--dtype", default="bf16", choices=list(DTYPES), help="of weights, activations and cache")
    found.add_argument("--levers", default="", help="names, with commas between; all of them if empty")
    found.add_argument("--steps", type=int, default=127, help="steps of a sample")
    found.add_argument("--sequences", type=int, default=3, help="of their own random cache and first token")
    found.add_argument("--repeats", type=int, default=3, help="samples of each sequence")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--results", default="out/ledger-{device}.jsonl", help="JSON lines that rows are appended to")
    return found


def chosen(arguments: argparse.Namespace) -> list[Lever]:
    """The levers that are measured, the shipped step first; the arguments are checked on the way."""
    check_published(arguments.models.split(","))
    for model in arguments.models.split(","):
        longest = config_of(model).max_positions
        if not 1 <= arguments.context <= longest - arguments.steps:
            raise UsageError(
                f"context: {arguments.context} and the steps are not in the {longest} positions of {model}"
            )
    for field, least in (("steps", 1), ("sequences", 1), ("repeats", 2), ("seed", 0)):
        if getattr(arguments, field) < least:
            raise UsageError(f"{field}: expected {least} or more, got {getattr(arguments, field)}")
    if not 1 <= arguments.batch <= MAX_ROWS:
        raise UsageError(f"batch: expected 1 to {MAX_ROWS}, got {arguments.batch}")
    names = [name for name in arguments.levers.split(",") if name]
    return named(names or [lever.name for lever in LEVERS])


def measured(step: Step, levers: Sequence[Lever], arguments: argparse.Namespace) -> Iterator[Row]:
    """A row of the shipped step and of each lever; the model is on the device while they come."""
    decoder = Decoder(step.config, DTYPES[step.dtype], arguments.seed)
    workload = Levered(decoder, levers, batch=step.batch, context=step.context, steps=arguments.steps)
    case = Case(workload, [lever.name for lever in levers])
    found = case.measure(arguments.sequences, arguments.repeats)
    drift = Drift(workload, [lever for lever in levers if not found[lever.name].failure], arguments.sequences)
    for lever in levers:
        own = found[lever.name]
        row = blank(step, lever, own, arguments.steps) | figures(lever, own, found[SHIPPED.name])
        yield row if own.failure else row | drift.of(lever)
    if any(one.failure for one in found.values()):
        probe_device()


def blank(step: Step, lever: Lever, own: Found, steps: int) -> Row:
    """The row of a lever without what was measured."""
    predicted = lever.predicted(step)
    moved = mean_bytes(step.config, DTYPES[step.dtype], batch=step.batch, context=step.context, steps=steps)
    return dict(
        op="ledger",
        model=step.model,
        dtype=step.dtype,
        batch=step.batch,
        rows=step.batch,
        context=step.context,
        lever=lever.name,
        strategy=lever.strategy,
        without=lever.without,
        tried=lever.tried,
        implementation=lever.implementation,
        status=own.status,
        ms_per_token=None,
        ms_p5=None,
        ms_p95=None,
        base_ms=None,
        gain_us=None,
        predicted_us=None if predicted.us is None else round(predicted.us, 1),
        predicted_bytes=predicted.bytes,
        predicted_launches=predicted.launches,
        drift=None,
        drift_max=None,
        drift_kl=None,
        tokens_checked=0,
        tokens_as_shipped=None,
        floor_ms=round(moved / step.ceiling_gbps / 1e6, 6),
        ceiling_gbps=round(step.ceiling_gbps, 1),
        samples=len(own.step_ms),
        steps=steps,
    )


def figures(lever: Lever, own: Found, shipped: Found) -> Row:
    """What was measured, as fields of the lever's row; a gain only where both times count."""
    if own.failure:
        return {}
    low, median, high = own.percentiles
    pairs = [(tokens, shipped.tokens.get(sequence)) for sequence, tokens in own.tokens.items()]
    row: Row = dict(
        ms_per_token=round(median, 6),
        ms_p5=round(low, 6),
        ms_p95=round(high, 6),
        tokens_checked=sum(tokens.size for tokens, _ in pairs),
        tokens_as_shipped=sum(int((a == b).sum()) for a, b in pairs if b is not None),
    )
    if shipped.status == "ok" and own.status == "ok":
        base = shipped.percentiles[1]
        gain_us = 1e3 * (base - median if lever.tried else median - base)
        row |= dict(base_ms=round(base, 6), gain_us=None if lever is SHIPPED else round(gain_us, 2))
    return row


def run(argv: Sequence[str], arguments: argparse.Namespace) -> int:
    levers = chosen(arguments)
    if jax.default_backend() != "gpu":
        raise UsageError("the ledger needs an NVIDIA GPU")
    origin = provenance.collect(["python", "-m", "experiments.ledger", *argv])
    device = devices.find(origin["device"])
    if device is None:
        raise UsageError(f"the ledger knows no {origin['device']}")
    ceiling = measure.gpu_read_ceiling_gbps()
    print(f"Read ceiling of this {origin['device']}, measured now: {ceiling:.1f} GB/s.", flush=True)
    swept = row_log.read(RESULTS / f"sweep-{device.key}.jsonl")
    rows: list[Row] = []
    with Log(arguments.results.replace("{device}", device.key)) as log:
        for model in arguments.models.split(","):
            step = Step(
                model=model, config=config_of(model), batch=arguments.batch, context=arguments.context,
                dtype=arguments.dtype, ceiling_gbps=ceiling, device=device,
                sweep=[row for row in swept if row["model"] == model],
            )  # fmt: skip
            for row in measured(step, levers, arguments):
                rows.append(row | dict(date=provenance.now()) | origin)
                log.append(rows[-1])
            gc.collect()  # a cycle would keep the model while the next is made
    print(tables.text(*ledger_tables.ledger(rows)))
    print(f"Rows: {log.path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return run(argv, parser().parse_args(argv))
    except (UsageError, ResultsError) as error:
        return fail(error)
    except DeviceLost as error:
        print(f"The GPU stopped answering ({error}).")
        return 1


if __name__ == "__main__":
    sys.exit(main())
