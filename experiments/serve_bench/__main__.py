"""Servers under load, by any OpenAI-compatible address: how long requests wait, at which rate.

    python -m experiments.serve_bench --config=serve.py [--FIELD=VALUE ...]

Chats are streamed from /chat/completions of each endpoint. In an open loop requests are sent when they are due, Poisson
or in bursts, whether those before have been answered or not, and their times are from then: no request waits in the
client for another (coordinated omission). In a closed loop so many are under way at a time. Prompts are random words,
the same for every endpoint and new in every case, and no two begin alike; with a tokenizer they have their lengths in
tokens exactly, which the server's usage has to confirm. Of the mix 'both' the figures are those of its chats, and the
same chats are run without long prompts too: the ratio is what these cost. A case counts what was due after the warm-up;
with several endpoints each case is run on all of them, in turn, and every other time the other way round. Where the
client itself was late a case does not count. Fields are those of kind 'serve' in experiments/bench/served_kinds.py.
"""

import asyncio
import contextlib
import sys
import time
from pathlib import Path

import httpx2

from experiments.bench import options as command_line
from experiments.bench import provenance, record, tables
from experiments.bench.device import in_path
from experiments.bench.ending import INTERRUPTED
from experiments.bench.errors import UsageError
from experiments.bench.log import Log
from experiments.bench.record import Record
from experiments.serve_bench import lag, load
from experiments.serve_bench.client import Request
from experiments.serve_bench.figures import figures
from experiments.serve_bench.mixes import Sizes
from experiments.serve_bench.options import Case, Options
from experiments.serve_bench.plots import draw_serve
from experiments.serve_bench.servers import started
from experiments.serve_bench.table import serve_table
from experiments.serve_bench.texts import text_of

MEASURING = tuple(f"experiments.serve_bench.{name}" for name in ("client", "load", "lag", "figures"))


def run(options: Options, command: str) -> int:
    origin = provenance.collect(command, *MEASURING)
    sizes = options.sizes(text_of(options.tokenizer))
    for name, url in options.urls.items():
        if name not in options.servers:
            check_there(name, url)
    records: list[Record] = []
    status = 0
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(Log(in_path(options.results)))
        try:
            stack.enter_context(
                started(
                    options.servers, options.urls, model=options.model, headers=options.headers,
                    ready_s=options.ready_s, logs=Path(log.path).parent,
                )
            )  # fmt: skip
            for case in options.cases:
                salt = time.time_ns()
                endpoints = list(options.urls.items())
                for name, url in reversed(endpoints) if case.turned else endpoints:
                    requests, fields = measured(options, case, sizes, url, salt)
                    fields |= beside_chats(fields, [one for one in records if one["endpoint"] == name])
                    records.append(record.new("serve", endpoint=name, **fields, **origin, date=provenance.now()))
                    log.append(records[-1])
                    print(said(records[-1], requests), flush=True)
        except KeyboardInterrupt:
            print("\nInterrupted.")
            status = INTERRUPTED
    if records:
        print("\n" + tables.text(*serve_table(records)))
        if options.plots:
            print("\n".join(draw_serve(records, in_path(options.plots))))
    print(f"Records: {log.path}")
    return status


def check_there(name: str, url: str) -> None:
    """Raises UsageError where nobody answers."""
    try:
        httpx2.get(f"{url}/models", timeout=10)
    except httpx2.HTTPError as error:
        raise UsageError(f"endpoints: {name}: {url} does not answer: {error}") from error


def measured(options: Options, case: Case, sizes: Sizes, url: str, salt: int) -> tuple[list[Request], Record]:
    """The requests of one case on one endpoint, and the record's fields."""
    o = options
    begun, requests, lags = asyncio.run(requests_of(o, case, sizes, url, salt))
    return requests, dict(
        model=o.model, mix=case.mix, arrivals=o.arrivals, rate=case.rate, concurrency=case.concurrency,
        burst=o.burst if o.arrivals == "bursty" else None, seed=o.seed + case.repeat,
        input_unit="tokens" if o.tokenizer else "words", spread=o.spread, chat_input=o.chat_input,
        chat_output=o.chat_output, long_input=o.long_input, long_output=o.long_output, long_every_s=o.long_every_s,
        slo_ttft_ms=o.slo_ttft_ms, slo_tpot_ms=o.slo_tpot_ms,
    ) | figures(requests, begun, o.seconds, o.bounds, lags, bool(o.tokenizer))  # fmt: skip


async def requests_of(
    options: Options, case: Case, sizes: Sizes, url: str, salt: int
) -> tuple[float, list[Request], list[tuple[float, float]]]:
    """From when on the requests of a case count, all of them, and how late the event loop was."""
    o, seed, whole_s = options, options.seed + case.repeat, options.warm_s + options.seconds
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=url, headers=o.headers, timeout=o.timeout_s, limits=limits) as client:
        if case.rate is None:
            assert case.concurrency is not None
            prompts = load.prompts_of(case.mix, sizes, seed, salt)
            if case.mix == "both":
                prompts = load.with_long(prompts, sizes, seed, salt)
            sending = load.closed_loop(client, o.model, prompts, case.concurrency, whole_s, o.extra)
        else:
            plan = load.planned(
                o.arrivals, case.mix, case.rate, whole_s, o.burst, o.long_every_s, sizes, seed, salt
            )  # fmt: skip
            sending = load.open_loop(client, o.model, plan, o.extra)
        begun = time.perf_counter() + o.warm_s
        async with lag.watched() as lags:
            return begun, await sending, lags


def beside_chats(fields: Record, records: list[Record]) -> Record:
    """What long prompts cost: more fields of one of the mix 'both', by the record of its chats without them."""
    if fields["mix"] != "both":
        return {}
    alike = ("rate", "concurrency", "seed")
    alone = next(one for one in records if one["mix"] == "chat" and all(one[name] == fields[name] for name in alike))
    before, now = (one["ttft_ms_p95"] if one["status"] == "ok" else None for one in (alone, fields))
    return dict(ttft_ms_p95_without_long=before, ttft_p95_ratio=round(now / before, 3) if before and now else None)


def said(found: Record, requests: list[Request]) -> str:
    """A line about a record, with the first thing that went wrong."""
    size = f"{found['concurrency']} at a time" if found["rate"] is None else f"{found['rate']:g} a second"
    case = f"{found['endpoint']}, {found['mix']}, {size} ({found['arrivals']})"
    wrong = next((f"; {one.error}: {' '.join(one.detail.split())}" for one in requests if one.error), "")
    end = f"{found['status']}{wrong}"
    if found["ttft_ms_p50"] is None or found["itl_ms_p99"] is None:
        return f"{case}: {found['requests']} requests; {end}"
    return (
        f"{case}: {found['requests']} requests, {found['errors']} errors, {found['rejected']} rejected; "
        f"TTFT {found['ttft_ms_p50']:.1f} ms (p95 {found['ttft_ms_p95']:.1f}), between events p99 "
        f"{found['itl_ms_p99']:.2f} ms; {found['output_tokens_per_s']:.1f} tokens/s; {end}"
    )


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.serve_bench", __doc__, config="serve.py", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
