"""Decode from end to end: milliseconds a token beside the time that its bytes take at the memory's read ceiling.

    python -m experiments.decode --config=decode.py [--FIELD=VALUE ...]

Timed is the whole greedy step on which the next token depends: embedding, layers, head, argmax, next position, with
random weights and `context` random positions in the cache. A sample is one call of a program that takes `steps` such
steps on the device (the host's 0.3 ms for starting a call are below 1% of it) for a sequence of its own cache and first
token; it starts with that cache in place and ends when its last token is there. The implementations take turns, every
sequence is run several times over by each of several compilations of the same program, and a time is the median of all
samples with the 5th and the 95th percentile, so those are percentiles of the mean step of a call.

A record is void, and its status says why, where something was compiled during timing, where the tokens of two runs of a
sequence by one compilation differ, where a logit is not finite (the unused part of the cache is NaN), or where the
percentiles are more than 10% of the median apart. What cannot be compiled or run is a record that says why. After a tie
that bf16 rounds the other way a sequence goes its own way, so tokens that are not XLA's are no fault. The fields are
those of kind 'decode' in experiments/bench/kinds.py.
"""

import gc
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pallas_kernels as pk
from experiments.bench import options as command_line
from experiments.bench import provenance, record, tables
from experiments.bench.device import DeviceLost, in_path, probe_device, reason_of
from experiments.bench.ending import INTERRUPTED
from experiments.bench.log import Log
from experiments.bench.models import DTYPES
from experiments.bench.record import Record
from experiments.bench.workload import Decoder, Workload, mean_bytes
from experiments.decode import options as decode_options
from experiments.decode import plots
from experiments.decode.case import Case, Found
from experiments.decode.options import Options
from experiments.decode.table import decode_table
from tokenspeed.measure.read_ceiling import read_ceiling_gbps
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.kv_dtypes import AUTO

MEASURING = ("experiments.bench.workload", "experiments.decode.case")


def run(options: Options, command: str) -> int:
    """All cases, their table and their picture."""
    models, implementations = decode_options.configs(options), decode_options.implementations(options)
    origin = provenance.collect(command, *MEASURING)
    records: list[Record] = []
    status = 0
    with Log(in_path(options.results)) as log:
        try:
            ceiling_gbps = read_ceiling_gbps()
            print(f"Read ceiling of this {origin['device']}, measured now: {ceiling_gbps:.1f} GB/s.", flush=True)
            for values in measured(options, models, implementations, ceiling_gbps):
                records.append(record.new("decode", **values, **origin, date=provenance.now()))
                log.append(records[-1])
                print(said(records[-1]), flush=True)
        except KeyboardInterrupt:
            print("\nInterrupted.")
            status = INTERRUPTED
        except DeviceLost as error:
            print(f"\nThe GPU stopped answering ({error}).")
            status = 1
    if records:
        print("\n" + tables.text(*decode_table(records)))
    if options.picture:
        print(plots.draw_decode(records, in_path(options.picture)))
    print(f"Records: {log.path}")
    return status


def measured(
    options: Options, models: dict[str, ModelConfig], implementations: Sequence[str], ceiling_gbps: float
) -> Iterator[Record]:
    """The fields of each case and implementation, as they come; a model at a time is on the device."""
    cases = list(itertools.product(options.batches, options.contexts, options.page_sizes, options.kv_dtypes))
    for model, config in models.items():
        for dtype in decode_options.dtypes(options):
            try:
                decoder = Decoder(config, DTYPES[dtype], options.seed)
            except Exception as error:
                decoder, failure = None, f"making the model failed: {reason_of(error)}"
            for batch, context, page_size, kv_dtype in cases:
                size = dict(batch=batch, context=context, page_size=page_size, kv_dtype=kv_dtype)
                lead = blank(options, config, ceiling_gbps, model=model, dtype=dtype, **size)
                if decoder is None:
                    yield from (lead | dict(implementation=name, status=failure) for name in implementations)
                    probe_device()
                    continue
                workload = Workload(decoder, steps=options.steps, **size)
                case = Case(workload, implementations, decode_options.compilations(options))
                found = case.measure(options.sequences, options.repeats)
                yield from (lead | figures(lead, name, found) for name in implementations)
                if any(one.failure for one in found.values()):
                    probe_device()
                if options.profile:
                    pages = f"-pages{page_size}" if page_size else ""
                    pages += "" if kv_dtype == AUTO else f"-{kv_dtype.replace('/', '-')}"
                    trace(case, Path(options.profile) / f"{model}-{dtype}-batch{batch}-context{context}{pages}")
                del case, workload
                gc.collect()  # a cycle would keep a cache, or the model, while the next is made
            decoder = None
            gc.collect()


def trace(case: Case, folder: Path) -> None:
    """Traces the case's programs, after its records are there: a trace that fails takes no time with it."""
    try:
        case.trace(folder)
        print(f"Traces: {folder}", flush=True)
    except Exception as error:
        print(f"No traces in {folder}: {reason_of(error)}", flush=True)


def blank(
    options: Options,
    config: ModelConfig,
    ceiling_gbps: float,
    *,
    model: str,
    dtype: str,
    batch: int,
    context: int,
    page_size: int,
    kv_dtype: str,
) -> Record:
    """The fields of a case with nothing found yet."""
    moved = mean_bytes(config, DTYPES[dtype], batch=batch, context=context, steps=options.steps, kv_dtype=kv_dtype)
    return dict(
        model=model,
        dtype=dtype,
        batch=batch,
        context=context,
        page_size=page_size,
        kv_dtype=kv_dtype,
        bytes=round(moved),
        ceiling_gbps=round(ceiling_gbps, 3),
        floor_ms=round(moved / ceiling_gbps / 1e6, 6),
        samples=0,
        compilations=decode_options.compilations(options),
        steps=options.steps,
        tokens_checked=0,
    )


def figures(lead: Record, implementation: str, found: dict[str, Found]) -> Record:
    """What the implementation gave, as fields."""
    own, xla = found[implementation], found.get("xla", Found(failure="not asked for"))
    fields: Record = dict(implementation=implementation, status=own.status, samples=len(own.step_ms))
    if own.failure:
        return fields
    low, median, high = own.percentiles
    gbps = lead["bytes"] / median / 1e6
    device = pk.find_device(provenance.device_name())
    pairs = [(tokens, xla.tokens.get(sequence)) for sequence, tokens in own.tokens.items()]
    return fields | dict(
        ms_per_token=round(median, 6),
        ms_p5=round(low, 6),
        ms_p95=round(high, 6),
        xla_ms_per_token=round(xla.percentiles[1], 6) if xla.status == "ok" else None,
        ms_by_compilation=[round(ms, 6) for ms in own.medians],
        tokens_per_s=round(1e3 * lead["batch"] / median, 3),
        achieved_gbps=round(gbps, 3),
        percent_of_ceiling=round(100 * gbps / lead["ceiling_gbps"], 2),
        percent_of_datasheet=device and round(100 * gbps / device.datasheet_gbps, 2),
        tokens_checked=sum(tokens.size for tokens, _ in pairs),
        tokens_agree_with_xla=None if xla.failure else sum(int((a == b).sum()) for a, b in pairs),
    )


def said(found: Record) -> str:
    """A line about a record."""
    context = tables.in_pages(found["context"], found["page_size"], found["kv_dtype"])
    case = f"{found['model']} {found['dtype']}, batch {found['batch']}, context {context}, {found['implementation']}"
    if found["ms_per_token"] is None:
        return f"{case}: {found['status']}"
    agree = found["tokens_agree_with_xla"]
    same = "" if agree is None or found["implementation"] == "xla" else f", {agree} of them XLA's too"
    return (
        f"{case}: {tables.spread(found['ms_per_token'], found['ms_p5'], found['ms_p95'], '.3f')} ms a token, "
        f"{found['percent_of_ceiling']:.1f}% of the ceiling; {found['tokens_checked']} tokens checked{same}; "
        f"{found['status']}"
    )


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.decode", __doc__, config="decode.py", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
