"""The engine under load: tokens a second, and how long requests wait, for their first token and between the others.

    python -m experiments.throughput --config=throughput.py [--FIELD=VALUE ...]

For each model one `AsyncEngine` that serves it, with random weights and prefix caching; every case is run on it, by
coroutines in the same process, greedily and with no token that ends a request. Times are taken where a coroutine gets
its tokens. Three kinds of cases, each of them after a warm run:

load: `concurrency` requests under way at a time, a new one for each that ends, all of different random prompts. A
    step's time is told apart: that in which the host waits for the device's tokens, and the rest of `Engine.step`, in
    which it may also wait for the coroutines, for Python's lock. On a processor a call may compute before it returns.
long prompt: while others decode a prompt of `long_prompts` tokens arrives, and when half of it is under way a short
    one: how long the others wait between two tokens, and the short one for its first.
shared prefix: the time to the first token of two requests that begin alike, one after the other.

The time between tokens is that between two deltas of a request, by the tokens of the second. A record is void, and its
status says why, where anything was compiled once the engine was ready, where a request drew another number of tokens
than was asked for, or where a case was not what it is about: a long prompt that was done before the short one came, a
prefix that was not found. One request of each load is run again alone: `tokens_alike` says how many of its tokens are
the same before the first that is not, since in bf16 a batch of another size may round a tie the other way. The fields
are those of kinds 'throughput', 'long_prompt' and 'shared_prefix' in experiments/bench/served_kinds.py.
"""

import contextlib
import gc
import sys
import time
from collections.abc import Generator

from experiments.bench import options as command_line
from experiments.bench import provenance, record
from experiments.bench.device import DeviceLost, in_path, probe_device, reason_of
from experiments.bench.ending import INTERRUPTED
from experiments.bench.log import Log
from experiments.bench.models import DTYPES
from experiments.bench.record import Record
from experiments.throughput import options as throughput_options
from experiments.throughput import table
from experiments.throughput.case import Case, Found, measure
from experiments.throughput.options import Options
from tokenspeed import LLM
from tokenspeed.async_engine import AsyncEngine
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.prefill_attention import resolve_prefill_backend

MEASURING = (
    "experiments.throughput.load",
    "experiments.throughput.long_prompt",
    "experiments.throughput.shared_prefix",
)


def run(options: Options, command: str) -> int:
    """All cases, and their tables."""
    models = throughput_options.configs(options)
    origin = provenance.collect(command, *MEASURING)
    records: list[Record] = []
    status = 0
    with Log(in_path(options.results)) as log, contextlib.closing(measured(options, models)) as found:
        try:
            for kind, values in found:
                records.append(record.new(kind, **values, **origin, date=provenance.now()))
                log.append(records[-1])
                print(said(records[-1]), flush=True)
        except KeyboardInterrupt:
            print("\nInterrupted.")
            status = INTERRUPTED
        except DeviceLost as error:
            print(f"\nThe GPU stopped answering ({error}).")
            status = 1
    if records:
        print("\n" + table.text(records))
    print(f"Records: {log.path}")
    return status


def measured(options: Options, models: dict[str, ModelConfig]) -> Generator[tuple[str, Record]]:
    """The kind and the fields of each case, as they come; a model at a time is on the device."""
    for model, config in models.items():
        for dtype in throughput_options.dtypes(options):
            yield from of_model(options, model, config, dtype)
            gc.collect()  # a cycle would keep the model while the next is made


def of_model(options: Options, model: str, config: ModelConfig, dtype: str) -> Generator[tuple[str, Record]]:
    """All cases of a model, on one engine."""
    implementation, cases = throughput_options.implementation(), throughput_options.cases(options)
    backend = resolve_prefill_backend(
        None, implementation=implementation, dtype=DTYPES[dtype], head_dim=config.head_dim
    )
    limits = dict(max_batch=throughput_options.max_batch(options), max_context=throughput_options.max_context(options))
    lead = dict(
        model=model, dtype=dtype, implementation=implementation, prefill_backend=backend,
        max_batched_tokens=options.max_batched_tokens, **limits,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        try:
            llm = LLM.random(
                config, dtype=DTYPES[dtype], seed=options.seed, kv_bytes=options.kv_bytes or None,
                max_batched_tokens=options.max_batched_tokens or None, implementation=implementation,
                prefill_backend=backend, **limits,
            )  # fmt: skip
            begun = time.perf_counter()
            engine = stack.enter_context(contextlib.closing(AsyncEngine(llm)))
            ready_s = time.perf_counter() - begun
        except Exception as error:
            failed = Found(failure=f"making the engine failed: {reason_of(error)}")
            yield from ((case.kind, lead | case.fields | dict(status=failed.status)) for case in cases)
            probe_device()
            return
        lead |= dict(
            kv_pages=engine.engine.pool.pages,
            programs=engine.engine.runner.programs,
            ready_s=round(ready_s, 3),
        )
        print(f"{model} {dtype}: {lead['programs']} programs, ready after {ready_s:.1f} s", flush=True)
        for case in cases:
            yield case.kind, lead | of_case(engine, config, case)


def of_case(engine: AsyncEngine, config: ModelConfig, case: Case) -> Record:
    found = measure(engine, config.vocab_size, case)
    if found.failure:
        probe_device()
    return case.fields | found.fields | dict(status=found.status)


def said(found: Record) -> str:
    """A line about a record."""
    engine, status = f"{found['model']} {found['dtype']}", found["status"]
    if found["kind"] == "throughput":
        case = f"{engine}, {found['concurrency']} at a time of {found['input_tokens']} + {found['output_tokens']}"
        if found["seconds"] is None:
            return f"{case}: {status}"
        return (
            f"{case}: {found['output_tokens_per_s']:.1f} tokens/s; TTFT {found['ttft_ms_p50']:.1f} ms "
            f"(p99 {found['ttft_ms_p99']:.1f}), between tokens {found['itl_ms_p50']:.2f} ms "
            f"(p99 {found['itl_ms_p99']:.2f}); host {found['host_ms_per_step']:.2f} ms a step; "
            f"{found['tokens_checked']} tokens counted, {found['tokens_alike']} of {found['output_tokens']} as alone; "
            f"{status}"
        )
    if found["kind"] == "long_prompt":
        case = f"{engine}, a prompt of {found['long_tokens']} beside {found['background']}"
        if found["long_ttft_ms"] is None:
            return f"{case}: {status}"
        return (
            f"{case}: between tokens {found['itl_before_ms_p50']:.2f} ms before, p99 "
            f"{found['itl_during_ms_p99']:.2f} during; TTFT {found['long_ttft_ms']:.1f} ms, of {found['short_tokens']} "
            f"tokens meanwhile {found['short_ttft_ms']:.1f} ms; {status}"
        )
    case = f"{engine}, a shared prefix of {found['prefix_tokens']}"
    if found["first_ttft_ms"] is None:
        return f"{case}: {status}"
    return f"{case}: TTFT {found['first_ttft_ms']:.2f} ms, then {found['second_ttft_ms']:.2f} ms; {status}"


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.throughput", __doc__, config="throughput.py", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
