"""Prefill: the time to the first token, and that of a chunk of a long prompt beside the time of its parts.

    python -m experiments.prefill --config=prefill.py [--FIELD=VALUE ...]

Of whole prompts (`prompts`) a sample is the wall time of `LLM.generate(prompts, SamplingParams(temperature=0,
max_tokens=1, ignore_eos=True))` with random weights and token ids, everything compiled before. Different prompts take
turns; each one's first token must be the same every time, and is compared with that by XLA's attention, which after a
tie of bf16 may be another.

Of a chunk (`chunks`) behind `starts` positions of a random cache a sample is the device's time of all layers as the
engine runs them, over pages that lie in no order: several calls, one behind the other, by their number. Beside it the
chunk's parts alone, each a program of all layers: the products, the attention on what was gathered, and the gathers.

A time is the median of all samples with the 5th and the 95th percentile. A record is void, and its status says why,
where something was compiled during timing, where the first tokens of two runs of a prompt differ, or where a chunk's
residual stream is not finite (the part of the cache that no token may see is NaN). What cannot be compiled or run is a
record that says why. The fields are those of kind 'prefill' in experiments/bench/kinds.py.
"""

import gc
import sys
from collections.abc import Iterator

from experiments.bench import options as command_line
from experiments.bench import provenance, record, tables
from experiments.bench.device import DeviceLost, in_path, probe_device, reason_of
from experiments.bench.ending import INTERRUPTED
from experiments.bench.log import Log
from experiments.bench.models import DTYPES
from experiments.bench.record import Record, rounded
from experiments.bench.workload import Decoder
from experiments.prefill import chunk, cost, first_token
from experiments.prefill import options as prefill_options
from experiments.prefill.found import Found
from experiments.prefill.options import Case, Options
from experiments.prefill.table import prefill_table
from tokenspeed import LLM
from tokenspeed.measure.read_ceiling import read_ceiling_gbps
from tokenspeed.models.config import ModelConfig

MEASURING = ("experiments.prefill.first_token", "experiments.prefill.chunk")


def run(options: Options, command: str) -> int:
    """All cases, and their table."""
    models = prefill_options.configs(options)
    origin = provenance.collect(command, *MEASURING)
    records: list[Record] = []
    status = 0
    with Log(in_path(options.results)) as log:
        try:
            ceiling_gbps = read_ceiling_gbps()
            print(f"Read ceiling of this {origin['device']}, measured now: {ceiling_gbps:.1f} GB/s.", flush=True)
            for values in measured(options, models, ceiling_gbps):
                records.append(record.new("prefill", **values, **origin, date=provenance.now()))
                log.append(records[-1])
                print(said(records[-1]), flush=True)
        except KeyboardInterrupt:
            print("\nInterrupted.")
            status = INTERRUPTED
        except DeviceLost as error:
            print(f"\nThe GPU stopped answering ({error}).")
            status = 1
    if records:
        print("\n" + tables.text(*prefill_table(records)))
    print(f"Records: {log.path}")
    return status


def measured(options: Options, models: dict[str, ModelConfig], ceiling_gbps: float) -> Iterator[Record]:
    """The fields of each case, as they come; a model at a time is on the device."""
    cases = prefill_options.cases(options)
    for model, config in models.items():
        for dtype in prefill_options.dtypes(options):
            backend = prefill_options.backend(options, config, dtype)
            implementation = prefill_options.implementation()
            names = dict(model=model, dtype=dtype, implementation=implementation, prefill_backend=backend)
            decoder = llm = None
            failure = ""
            try:
                decoder = Decoder(config, DTYPES[dtype], options.seed)
                llm = LLM(
                    decoder.weights.model, **prefill_options.limits(options, config), implementation=implementation,
                    prefill_backend=backend, prefix_caching=False,  # a prompt that comes again is computed again
                )  # fmt: skip
            except Exception as error:
                failure = f"making the model failed: {reason_of(error)}"
            for case in cases:
                lead = names | blank(config, dtype, case, ceiling_gbps)
                if decoder is None or llm is None:
                    found = Found(failure=failure)
                elif case.start:
                    found = chunk.measure(
                        decoder, case, implementation=implementation, prefill_backend=backend, samples=options.samples
                    )
                else:
                    found = first_token.measure(
                        llm, case, samples=options.samples, sequences=options.sequences, seed=options.seed,
                        check_up_to=options.check_up_to,
                    )  # fmt: skip
                yield lead | figures(lead, found)
                if found.failure:
                    probe_device()
                gc.collect()  # a cycle would keep a cache while the next is made
            decoder = llm = None
            gc.collect()


def blank(config: ModelConfig, dtype: str, case: Case, ceiling_gbps: float) -> Record:
    """The fields of a case with nothing found yet."""
    flop, moved = cost.flop(config, case), cost.moved_bytes(config, dtype, case)
    floor = cost.floor_ms(
        flop=flop, moved=moved, ceiling_gbps=ceiling_gbps, device=provenance.device_name(), dtype=dtype
    )
    return dict(
        batch=case.batch,
        tokens=case.tokens,
        start=case.start,
        flop=flop,
        bytes=moved,
        ceiling_gbps=round(ceiling_gbps, 3),
        floor_ms=round(floor, 6),
    )


def figures(lead: Record, found: Found) -> Record:
    """What a case gave, as fields."""
    fields: Record = dict(status=found.status, samples=len(found.ms), tokens_checked=found.tokens_checked)
    if found.failure:
        return fields
    low, median, high = found.percentiles
    return fields | dict(
        ms=round(median, 6),
        ms_p5=round(low, 6),
        ms_p95=round(high, 6),
        tflops=rounded(lead["flop"] / median / 1e9),
        products_ms=rounded(found.products_ms, 6),
        attention_ms=rounded(found.attention_ms, 6),
        gather_ms=rounded(found.gather_ms, 6),
        tokens_agree_with_xla=found.tokens_agree,
    )


def said(found: Record) -> str:
    """A line about a record."""
    behind = f" behind {found['start']}" if found["start"] else ""
    case = (
        f"{found['model']} {found['dtype']}, batch {found['batch']}, {found['tokens']} tokens{behind}, "
        f"{found['prefill_backend']}"
    )
    if found["ms"] is None:
        return f"{case}: {found['status']}"
    parts = [f"{tables.spread(found['ms'], found['ms_p5'], found['ms_p95'])} ms, floor {found['floor_ms']:.2f} ms"]
    alone = [
        f"{name} {found[field]:.2f} ms"
        for name, field in (("products", "products_ms"), ("attention", "attention_ms"), ("gathers", "gather_ms"))
        if found[field] is not None
    ]
    if alone:
        parts.append(f"alone {', '.join(alone)}")
    if found["tokens_checked"]:
        agree = found["tokens_agree_with_xla"]
        same = "" if agree is None else f", {agree} of them XLA's too"
        parts.append(f"{found['tokens_checked']} first tokens checked{same}")
    return f"{case}: {'; '.join(parts)}; {found['status']}"


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.prefill", __doc__, config="prefill.py", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
