"""Decode from end to end: milliseconds a token beside the time that its bytes take at the memory's read ceiling.

    python -m experiments.decode --config=decode.py [--config.FIELD=VALUE ...]

Timed is the whole greedy step on which the next token depends: embedding, layers, head, argmax, next position, with
random weights and `context` random positions in the cache. A sample is one call of a program that takes `steps` such
steps on the device (the host's 0.3 ms for starting a call are below 1% of it) for a sequence of its own cache and first
token; it starts with that cache in place and ends when its last token is there. The implementations take turns, every
sequence is run several times over by each of several compilations of the same program, and a time is the median of all
samples with the 5th and the 95th percentile, so those are percentiles of the mean step of a call.

A row is void, and its status says why, where something was compiled during timing, where the tokens of two runs of a
sequence by one compilation differ, where a logit is not finite (the unused part of the cache is NaN), or where the
percentiles are more than 10% of the median apart. What cannot be compiled or run is a row that says why. Beside the
fields of every row (experiments/rows.py):

batch, rows: sequences at a time. context: positions in the cache before the first step.
ms_per_token, ms_p5, ms_p95, samples, steps: of one step, in which each of the `batch` sequences gets a token.
compilations, ms_by_compilation: how often each program was compiled, and the median of each.
xla_ms_per_token: XLA's, of the same run, where that counts. tokens_per_s: of all sequences together.
bytes: that a step must read, weights and keys and values, on average over the steps; floor_ms: at `ceiling_gbps`.
achieved_gbps, percent_of_ceiling, percent_of_datasheet: bytes by the time, and its share of either bandwidth.
tokens_checked: drawn by different sequences, each the same in every run. tokens_agree_with_xla: how many of them XLA
    draws too; after a tie that bf16 rounds the other way a sequence goes its own way, so fewer are no fault.
"""

import gc
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import decode_options, decode_tables, plots, provenance, tables
from experiments.cases import DTYPES
from experiments.decode_case import Case, Found
from experiments.decode_loop import Decoder, Workload, mean_bytes
from experiments.decode_options import Options
from experiments.gpu import DeviceLost, probe_device, reason_of
from experiments.options import UsageError, fail, parse
from experiments.row_log import Log, ResultsError, Row
from pallas_kernels.common import devices
from tokenspeed import measure
from tokenspeed.config import ModelConfig

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv if argv is None else argv)
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "Print this and stop.", short_name="h", flag_values=values)
    try:
        options, values = parse(argv, values, Options, "decode.py")
        if values.help:
            print(__doc__, *values.get_help().splitlines(), sep="\n")
            return 0
        return run(options, argv)
    except (UsageError, ResultsError) as error:
        return fail(error)


def run(options: Options, argv: Sequence[str]) -> int:
    """All cases, their table and their picture."""
    models, implementations = decode_options.configs(options), decode_options.implementations(options)
    origin = provenance.collect(["python -m experiments.decode", *argv[1:]])
    device = devices.find(origin["device"])
    key = device.key if device else jax.default_backend()
    rows: list[Row] = []
    status = 0
    with Log(options.results.replace("{device}", key)) as log:
        try:
            ceiling_gbps = measure.read_ceiling_gbps()
            print(f"Read ceiling of this {origin['device']}, measured now: {ceiling_gbps:.1f} GB/s.", flush=True)
            for row in measured(options, models, implementations, ceiling_gbps):
                rows.append(row | dict(date=provenance.now()) | origin)
                log.append(rows[-1])
                print(said(row), flush=True)
        except KeyboardInterrupt:
            print("\nInterrupted.")
            status = INTERRUPTED
        except DeviceLost as error:
            print(f"\nThe GPU stopped answering ({error}).")
            status = 1
    if rows:
        print("\n" + tables.text(*decode_tables.decode(rows)))
    if options.picture:
        print(plots.draw_decode(rows, options.picture.replace("{device}", key)))
    print(f"Rows: {log.path}")
    return status


def measured(
    options: Options, models: dict[str, ModelConfig], implementations: Sequence[str], ceiling_gbps: float
) -> Iterator[Row]:
    """A row of each case and implementation, as it comes; a model at a time is on the device."""
    cases = [(batch, context) for batch in options.batches for context in options.contexts]
    for model, config in models.items():
        for dtype in decode_options.dtypes(options):
            try:
                decoder = Decoder(config, DTYPES[dtype], options.seed)
            except Exception as error:
                decoder, failure = None, f"making the model failed: {reason_of(error)}"
            for batch, context in cases:
                lead = blank(options, config, ceiling_gbps, model=model, dtype=dtype, batch=batch, context=context)
                if decoder is None:
                    yield from (lead | dict(implementation=name, status=failure) for name in implementations)
                    probe_device()
                    continue
                workload = Workload(decoder, batch=batch, context=context, steps=options.steps)
                case = Case(workload, implementations, decode_options.compilations(options))
                found = case.measure(options.sequences, options.repeats)
                yield from (lead | figures(lead, name, found) for name in implementations)
                if any(one.failure for one in found.values()):
                    probe_device()
                if options.profile:
                    trace(case, Path(options.profile) / f"{model}-{dtype}-batch{batch}-context{context}")
                del case
                gc.collect()  # a cycle would keep a cache, or the model, while the next is made
            decoder = None
            gc.collect()


def trace(case: Case, folder: Path) -> None:
    """Traces the case's programs, after its rows are there: a trace that fails takes no time with it."""
    try:
        case.trace(folder)
        print(f"Traces: {folder}", flush=True)
    except Exception as error:
        print(f"No traces in {folder}: {reason_of(error)}", flush=True)


def blank(
    options: Options, config: ModelConfig, ceiling_gbps: float, *, model: str, dtype: str, batch: int, context: int
) -> Row:
    """A row of the case with nothing found yet."""
    moved = mean_bytes(config, DTYPES[dtype], batch=batch, context=context, steps=options.steps)
    return dict(
        op="decode",
        model=model,
        dtype=dtype,
        batch=batch,
        rows=batch,
        context=context,
        implementation="",
        status="",
        ms_per_token=None,
        ms_p5=None,
        ms_p95=None,
        xla_ms_per_token=None,
        tokens_per_s=None,
        bytes=round(moved),
        achieved_gbps=None,
        ceiling_gbps=round(ceiling_gbps, 3),
        percent_of_ceiling=None,
        percent_of_datasheet=None,
        floor_ms=round(moved / ceiling_gbps / 1e6, 6),
        samples=0,
        compilations=decode_options.compilations(options),
        ms_by_compilation=None,
        steps=options.steps,
        tokens_checked=0,
        tokens_agree_with_xla=None,
    )


def figures(row: Row, implementation: str, found: dict[str, Found]) -> Row:
    """What the implementation gave, as fields of its row."""
    own, xla = found[implementation], found.get("xla", Found(failure="not asked for"))
    fields: dict[str, Any] = dict(implementation=implementation, status=own.status, samples=len(own.step_ms))
    if own.failure:
        return fields
    low, median, high = own.percentiles
    gbps = row["bytes"] / median / 1e6
    device = devices.find(provenance.device_name())
    pairs = [(tokens, xla.tokens.get(sequence)) for sequence, tokens in own.tokens.items()]
    return fields | dict(
        ms_per_token=round(median, 6),
        ms_p5=round(low, 6),
        ms_p95=round(high, 6),
        xla_ms_per_token=round(xla.percentiles[1], 6) if xla.status == "ok" else None,
        ms_by_compilation=[round(ms, 6) for ms in own.medians],
        tokens_per_s=round(1e3 * row["batch"] / median, 3),
        achieved_gbps=round(gbps, 3),
        percent_of_ceiling=round(100 * gbps / row["ceiling_gbps"], 2),
        percent_of_datasheet=device and round(100 * gbps / device.datasheet_gbps, 2),
        tokens_checked=sum(tokens.size for tokens, _ in pairs),
        tokens_agree_with_xla=None if xla.failure else sum(int((a == b).sum()) for a, b in pairs),
    )


def said(row: Row) -> str:
    """A line about a row."""
    case = f"{row['model']} {row['dtype']}, batch {row['batch']}, context {row['context']}, {row['implementation']}"
    if row["ms_per_token"] is None:
        return f"{case}: {row['status']}"
    agree = row["tokens_agree_with_xla"]
    same = "" if agree is None or row["implementation"] == "xla" else f", {agree} of them XLA's too"
    return (
        f"{case}: {row['ms_per_token']:.3f} ms a token ({row['ms_p5']:.3f} to {row['ms_p95']:.3f}), "
        f"{row['percent_of_ceiling']:.1f}% of the ceiling; {row['tokens_checked']} tokens checked{same}; "
        f"{row['status']}"
    )


if __name__ == "__main__":
    sys.exit(main())
