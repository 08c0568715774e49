"""Servers under load, by any OpenAI-compatible address: how long requests wait, at which rate.

    python -m experiments.serve_bench --config=serve.py [--FIELD=VALUE ...]

Chats are streamed from /chat/completions of each endpoint. In an open loop requests are sent when they are due, Poisson
or in bursts, whether those before have been answered or not, and their times are from then: no request waits in the
client for another (coordinated omission). In a closed loop so many are under way at a time. Prompts are random words,
the same for every endpoint, and no two begin alike. Of the mix 'both' the figures are those of its chats. A case counts
what was due after the warm-up; with several endpoints each case is run on all of them, in turn, and every other time
the other way round. Fields are those of kind 'serve' in experiments/bench/kinds.py.
"""

import asyncio
import sys
import time
from typing import Any

import httpx2
import numpy as np

from experiments.bench import options as command_line
from experiments.bench import provenance, record, tables
from experiments.bench.device import in_path
from experiments.bench.ending import INTERRUPTED
from experiments.bench.errors import UsageError
from experiments.bench.log import Log
from experiments.bench.record import Record
from experiments.serve_bench import load
from experiments.serve_bench.client import Request
from experiments.serve_bench.figures import figures
from experiments.serve_bench.options import Case, Options
from experiments.serve_bench.table import serve_table

MEASURING = ("experiments.serve_bench.client", "experiments.serve_bench.load", "experiments.serve_bench.figures")


def run(options: Options, command: str) -> int:
    origin = provenance.collect(command, *MEASURING)
    for name, url in options.urls.items():
        check_there(name, url)
    records: list[Record] = []
    status = 0
    with Log(in_path(options.results)) as log:
        try:
            for number, case in enumerate(options.cases):
                endpoints = list(options.urls.items())
                for name, url in endpoints if number % 2 == 0 else reversed(endpoints):
                    fields = measured(options, case, url)
                    records.append(record.new("serve", endpoint=name, **fields, **origin, date=provenance.now()))
                    log.append(records[-1])
                    print(said(records[-1]), flush=True)
        except KeyboardInterrupt:
            print("\nInterrupted.")
            status = INTERRUPTED
    if records:
        print("\n" + tables.text(*serve_table(records)))
    print(f"Records: {log.path}")
    return status


def check_there(name: str, url: str) -> None:
    """Raises UsageError where nobody answers."""
    try:
        httpx2.get(f"{url}/models", timeout=10)
    except httpx2.HTTPError as error:
        raise UsageError(f"endpoints: {name}: {url} does not answer: {error}") from error


def measured(options: Options, case: Case, url: str) -> Record:
    """The fields of one case on one endpoint."""
    begun, requests = asyncio.run(requests_of(options, case, url))
    found = figures(requests, begun, options.slo_ttft_ms, options.slo_itl_ms)
    failed = found["errors"] == found["requests"]
    return (
        dict(
            model=options.model, mix=case.mix, arrivals=options.arrivals, rate=case.rate, concurrency=case.concurrency,
            seed=options.seed + case.repeat, chat_words=options.chat_words, chat_tokens=options.chat_tokens,
            long_words=options.long_words, long_tokens=options.long_tokens, long_every_s=options.long_every_s,
            slo_ttft_ms=options.slo_ttft_ms, slo_itl_ms=options.slo_itl_ms,
            status="void: no request was answered" if failed else "ok",
        )
        | found
    )  # fmt: skip


async def requests_of(options: Options, case: Case, url: str) -> tuple[float, list[Request]]:
    """All requests of a case, and from when on they count."""
    o, seed = options, options.seed + case.repeat
    headers = dict(authorization=f"Bearer {o.api_key}") if o.api_key else {}
    extra: dict[str, Any] = dict(ignore_eos=True) if o.ignore_eos else {}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=o.timeout_s, limits=limits) as client:
        begun = time.perf_counter() + o.warm_s
        if case.rate is None:
            assert case.concurrency is not None
            prompts = load.prompts_of(case.mix, o.sizes, np.random.default_rng(seed))
            if case.mix == "both":
                prompts = load.with_long(prompts, o.sizes, seed)
            found = await load.closed_loop(client, o.model, prompts, case.concurrency, o.warm_s + o.seconds, extra)
        else:
            plan = load.planned(
                o.arrivals, case.mix, case.rate, o.warm_s + o.seconds, o.burst, o.long_every_s, o.sizes, seed
            )
            found = await load.open_loop(client, o.model, plan, extra)
    return begun, found


def said(found: Record) -> str:
    """A line about a record."""
    size = f"{found['concurrency']} at a time" if found["rate"] is None else f"{found['rate']:g} a second"
    case = f"{found['endpoint']}, {found['mix']}, {size} ({found['arrivals']})"
    if found["ttft_ms_p50"] is None or found["itl_ms_p99"] is None:
        return f"{case}: {found['requests']} requests; {found['status']}"
    return (
        f"{case}: {found['requests']} requests, {found['errors']} errors, {found['rejected']} rejected; "
        f"TTFT {found['ttft_ms_p50']:.1f} ms (p95 {found['ttft_ms_p95']:.1f}), between tokens p99 "
        f"{found['itl_ms_p99']:.2f} ms; {found['output_tokens_per_s']:.1f} tokens/s; {found['status']}"
    )


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.serve_bench", __doc__, config="serve.py", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
