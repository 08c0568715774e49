"""Soak: random requests through the engine, each compared with itself alone; and memory over many short ones.

    python -m experiments.soak [--requests=2000] [--short=20000] [--batch_invariant] [--served] [--seed=0]

Requests of the small trained model come, overlap, are cancelled, preempted (the pool is kept small) and end. With
`--batch_invariant` each one's tokens, text and log-probabilities are the bits of its lone run; without, where a token
differs first, it and that of the lone run must be nearer than NEAR_TIE in the lone run's scores. With `--served` the
engine has the programs of a served model, compiled before the first request, else it compiles what it needs. All pages
are free at the end, and `short` requests of one token each leave the process and the device with the memory that they
had. A record (kind 'soak' of experiments/bench/served_kinds.py) says what was found; the exit status is 1 where
something is wrong.

An hour on 2 cores without a GPU, some minutes with one; `--requests=200 --short=1000` takes five minutes.
"""

import dataclasses
import gc
import sys

import jax
import psutil
from tqdm import tqdm

from experiments.bench import options as command_line
from experiments.bench import provenance, record
from experiments.bench.device import gpu_here, in_path
from experiments.bench.log import Log
from experiments.bench.options import check_least
from experiments.soak import run as soak
from experiments.soak.run import Alone
from experiments.soak.traffic import Request, requests
from tokenspeed.engine.build import for_serving, offline
from tokenspeed.engine.engine import Engine
from tokenspeed.llm import LLM
from tokenspeed.sampling.params import SamplingParams

MEASURING = ("experiments.soak.run", "experiments.soak.traffic", "tokenspeed.llm")
NEAR_TIE = {"float32": 1e-3, "bfloat16": 0.25}
"""How near the scores of two tokens are that may take each other's place: the order of sums moves logits, of some 10,
by a few of the dtype's last digits (1.2e-7 and 7.8e-3 of them), and what was drawn before adds to that."""
PAGES = 16
"""Of the pool: a quarter of what a full batch may take, so that some are preempted."""
GROWTH_BYTES = 64 << 20
"""Of a process that keeps nothing: allocators return memory late."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to run.

    Attributes:
        requests: random ones, compared with themselves alone. short: of one token each, for memory's sake.
        batch: sequences at a time. batch_invariant: see `LLM`. served: whether by the programs of a served model.
        seed: of the requests.
        results: the file that the record is appended to.
    """

    requests: int = 2000
    short: int = 20000
    batch: int = 8
    batch_invariant: bool = False
    served: bool = False
    seed: int = 0
    results: str = "out/soak-{device}.jsonl"

    def __post_init__(self):
        check_least(self, requests=1, short=0, batch=1, seed=0)


def make(options: Options, *, pages: int) -> tuple[LLM, Engine]:
    """The small model, and an engine of so many pages."""
    implementation = "triton" if gpu_here() else "xla"
    llm = LLM.from_pretrained("tiny", implementation=implementation)
    config = llm.model.config
    page_bytes = 64 * config.kv_bytes_per_token(llm.model.dtype.itemsize)
    llm = LLM(
        llm.model, llm.tokenizer, max_context=config.max_positions, max_batch=options.batch,
        kv_bytes=pages * page_bytes, batch_invariant=options.batch_invariant, implementation=implementation,
    )  # fmt: skip
    return llm, engine_of(llm, options)


def engine_of(llm: LLM, options: Options) -> Engine:
    return (for_serving if options.served else offline)(llm.model, llm.options)


def compared(options: Options) -> dict:
    """The fields of a record that the random requests give."""
    llm, engine = make(options, pages=PAGES)
    asked = list(requests(llm.encode, count=options.requests, max_context=llm.max_context, seed=options.seed))
    with tqdm(total=len(asked), unit="request", desc="together", mininterval=5) as bar:
        found = soak.together(llm, engine, asked, tick=lambda done: bar.update(done - bar.n))
    alone = Alone(llm, engine_of(llm, options))
    alike, differing, problems = 0, [], []
    ended = [i for i, row in enumerate(found.rows) if row.reason is not None]
    for i in tqdm(ended, unit="request", desc="alone", mininterval=5):
        row, other = found.rows[i], alone.row(asked[i])
        if soak.same(row, other):
            alike += 1
        elif options.batch_invariant:
            problems.append(f"request {i} is not the bits of its lone run")
        elif (one := soak.difference(llm, i, asked[i], row, other)) is not None:
            differing.append(one)
            if one.gap > NEAR_TIE[str(llm.model.dtype)]:
                problems.append(f"request {i}: token {one.token} differs, by {one.gap:.3g}")
    if len(ended) + found.cancelled != len(asked):
        problems.append(f"{len(asked) - len(ended) - found.cancelled} requests did not end")
    if found.free_at_end != PAGES:
        problems.append(f"{PAGES - found.free_at_end} pages were not given back")
    stats = engine.pool.stats
    return dict(
        status="ok" if not problems else f"{len(problems)} wrong: {'; '.join(problems[:3])}",
        requests=len(asked), cancelled=found.cancelled, preemptions=engine.scheduler.preemptions,
        hit_tokens=stats.hit_tokens, evictions=stats.evictions, longest_wait_steps=found.longest_wait,
        tokens=sum(len(row.ids) for row in found.rows), tokens_checked=sum(len(found.rows[i].ids) for i in ended),
        same_bits=alike, first_tokens_differing=len(differing),
        largest_gap=record.finite(max((one.gap for one in differing), default=0.0)),
        dtype={"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[str(llm.model.dtype)],
        implementation=llm.implementation,
    )  # fmt: skip


def memory_bytes() -> tuple[int, int]:
    """(of the process, of the device; 0 where that has no count)."""
    gc.collect()
    stats = jax.local_devices()[0].memory_stats() or {}
    return psutil.Process().memory_info().rss, stats.get("bytes_in_use", 0)


def flat(options: Options) -> dict:
    """The fields that many requests of one token give: what memory grew by, from a tenth of them on."""
    llm, engine = make(options, pages=PAGES)
    before = None
    for i in tqdm(range(options.short), unit="request", desc="short", mininterval=5):
        if i == options.short // 10:
            before = memory_bytes()
        one = Request(
            prompt=(1, 3 + i % 90, 3 + i % 89), params=SamplingParams(max_tokens=1, seed=i), sample=0, seed=0,
            priority=0, after=0, cancel_after=None,
        )  # fmt: skip
        engine.add(i, soak.row_of(llm, one))
        engine.step()
    while not engine.is_idle:
        engine.step()
    after = memory_bytes()
    grown = [late - early for late, early in zip(after, before or after)]
    fine = grown[0] <= GROWTH_BYTES and grown[1] <= 0 and engine.pool.used == 0
    return dict(
        short_requests=options.short, process_grew_bytes=grown[0], device_grew_bytes=grown[1], flat=fine
    )  # fmt: skip


def run(options: Options, command: str) -> int:
    origin = provenance.collect(command, *MEASURING)
    fields = compared(options) | (flat(options) if options.short else {})
    if not fields.get("flat", True) and fields["status"] == "ok":
        fields["status"] = "memory grew"
    fields |= {name: getattr(options, name) for name in ("batch", "batch_invariant", "served", "seed")}
    with Log(in_path(options.results)) as log:
        log.append(record.new("soak", **fields, **origin, date=provenance.now()))
    print(*(f"{name}: {value}" for name, value in fields.items()), sep="\n")
    print(f"Records: {log.path}")
    return 0 if fields["status"] == "ok" else 1


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.soak", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
