"""A decode step of other engines, or their work under load, on the same card: what our figures stand beside.

    python -m experiments.peers --engine=vllm [--models=llama-3.1-8b,llama-3.2-1b] [--batches=1,8,16] [--in_process]
    python -m experiments.peers --engine=vllm --models=llama-3.1-8b-fp8
    python -m experiments.peers --engine=vllm --concurrency=1,8,32,64,256
    python -m experiments.peers --engine=torch

needs an NVIDIA GPU and the engine installed; run it beside `experiments.decode`, or with `--concurrency` beside
`experiments.throughput`. Weights are random, contexts those of these benchmarks, each engine runs in its own loop, in a
process of its own (experiments/peers/*_driver.py):

vllm: offline `LLM.generate`, greedy; `steps` + 1 tokens less 1 token from the same prompts, by `steps`, so that prefill
    and start cancel. `--in_process` keeps its engine in the driver's process, where 1B is faster.
    With `--concurrency` its asynchronous engine, with the limits of its server, has so many requests under way at a
    time, as in `experiments.throughput`, and tokens are timed where a coroutine gets them.
    Of a model in fp8 it rounds the projections itself, a scale for each, and its activations too; its head stays bf16.
torch: a plain LLaMA of our own under `torch.compile(mode="max-autotune")`, with CUDA graphs.

A record ('peer' or 'peer_load' of experiments/bench/served_kinds.py) is appended for each model and case. Figures move
from day to day, so every record stays: tables show ranges.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.bench import options as command_line
from experiments.bench import provenance, record
from experiments.bench.device import in_path, needed_gpu
from experiments.bench.errors import ResultsError, UsageError
from experiments.bench.log import Log
from experiments.bench.models import FOLDER, PUBLISHED, QUANTISED, check_models, config_of
from experiments.bench.options import check_least, check_name, check_some
from experiments.bench.record import Record
from experiments.decode.options import check_context
from experiments.throughput.client import Request
from experiments.throughput.load import times

ENGINES = ("vllm", "torch")
QUANTISES = {"vllm": ("fp8",), "torch": ()}
"""Formats of weights, as names of models end in them, that an engine makes of random weights by itself."""
STEP_FIELDS = {"batch", "ms", "version", "how"}
LOAD_FIELDS = {"load", "called", "arrivals", "version", "how"}
"""Of what drivers print."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        engine: one of ENGINES. models: names in configs/models, which may end in a format of QUANTISES.
        batches: sequences at a time.
        context: positions before the first step. steps: tokens that a time is the mean of. repeats: times.
        in_process: vLLM's engine in the driver's own process.
        concurrency: requests under way at a time; where there are any, these are measured and not steps.
        input_tokens, output_tokens: of each. rounds: requests of a case, by its concurrency, and at least
            `least_requests`.
        results: the file that records are appended to.
    """

    engine: str = ""
    models: tuple[str, ...] = ("llama-3.1-8b", "llama-3.2-1b")
    batches: tuple[int, ...] = (1,)
    context: int = 1024
    steps: int = 127
    repeats: int = 5
    in_process: bool = False
    concurrency: tuple[int, ...] = ()
    input_tokens: int = 1024
    output_tokens: int = 128
    rounds: int = 2
    least_requests: int = 8
    results: str = "out/peers-{device}.jsonl"

    def __post_init__(self):
        check_name("engine", self.engine, ENGINES)
        check_some(self, "models", "batches")
        check_models("models", self.models, (*PUBLISHED, *QUANTISED))
        for model in self.models:
            if (format := as_made(model)[1]) and format not in QUANTISES[self.engine]:
                known = " or ".join(("as published", *QUANTISES[self.engine]))
                raise UsageError(f"models: {model}: expected weights {known}, since {self.engine} makes no {format}")
        check_least(
            self, batches=1, context=1, steps=1, repeats=2, concurrency=1, input_tokens=1, output_tokens=2, rounds=1,
            least_requests=1,
        )  # fmt: skip
        if self.concurrency and self.engine != "vllm":
            raise UsageError(f"concurrency: expected none, since {self.engine} takes no requests")
        for model in self.models:
            check_context(model, config_of(model), self.context, self.steps)
            check_context(model, config_of(model), self.input_tokens, self.output_tokens)

    @property
    def loads(self) -> list[dict[str, int]]:
        """As the driver takes them."""
        return [
            dict(
                concurrency=most, requests=max(self.rounds * most, self.least_requests), input_tokens=self.input_tokens,
                output_tokens=self.output_tokens,
            )
            for most in self.concurrency
        ]  # fmt: skip


def as_made(model: str) -> tuple[str, str | None]:
    """(the published model, the format that its weights are quantised in, or None)"""
    return QUANTISED.get(model, (model, None))


def drive(options: Options, model: str) -> Iterator[dict[str, Any]]:
    """What the engine's driver prints, a JSON object for each case."""
    published, quantization = as_made(model)
    request: dict[str, Any] = dict(config=str(FOLDER / f"{published}.json"), quantization=quantization)
    if options.concurrency:
        request |= dict(loads=options.loads)
    else:
        request |= dict(
            batches=options.batches, context=options.context, steps=options.steps, repeats=options.repeats,
            in_process=options.in_process,
        )  # fmt: skip
    name = f"{options.engine}_load_driver.py" if options.concurrency else f"{options.engine}_driver.py"
    driver = Path(__file__).with_name(name)
    command = [sys.executable, str(driver), json.dumps(request)]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last = line.strip() or last
                if (found := found_in(line)) is not None:
                    yield found
        except BaseException:  # an interruption may be of this process alone
            process.kill()
            raise
    if process.returncode:
        raise ResultsError(f"{options.engine}: {model}: its driver ended with {process.returncode}: {last}")


def found_in(line: str) -> dict[str, Any] | None:
    """What a driver says in a line of its output; None where the line is the engine's own."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() in (STEP_FIELDS, LOAD_FIELDS) else None


def fields_of(options: Options, model: str, found: dict[str, Any]) -> Record:
    """A record's fields of what a driver printed: milliseconds a step of each repeat."""
    times = sorted(found["ms"])
    middle = (times[(len(times) - 1) // 2] + times[len(times) // 2]) / 2
    return dict(
        model=model,
        dtype="bf16",
        batch=found["batch"],
        context=options.context,
        implementation=options.engine,
        status="ok",
        engine=options.engine,
        engine_version=found["version"],
        how=found["how"],
        ms_per_token=round(middle, 4),
        ms_min=round(times[0], 4),
        ms_max=round(times[-1], 4),
        samples=len(times),
        steps=options.steps,
        tokens_per_s=round(1e3 * found["batch"] / middle, 2),
    )


def load_fields_of(options: Options, model: str, found: dict[str, Any]) -> Record:
    """A record's fields of what a driver printed about a load.

    Raises:
        ResultsError: a request drew another number of tokens than was asked for.
    """
    wanted = found["load"]["output_tokens"]
    requests = [
        Request(prompt=[], max_tokens=wanted, called=called, arrivals=[(now, count) for now, count in arrivals])
        for called, arrivals in zip(found["called"], found["arrivals"], strict=True)
    ]
    if any(sum(count for _, count in one.arrivals) != wanted for one in requests):
        raise ResultsError(f"{options.engine}: {model}: it drew another number of tokens than was asked for")
    return (
        dict(
            model=model, dtype="bf16", implementation=options.engine, status="ok", engine=options.engine,
            engine_version=found["version"], how=found["how"],
        )
        | found["load"]
        | times(requests)
    )  # fmt: skip


def said(fields: Record) -> str:
    """A line about a record."""
    lead = f"{fields['engine']} {fields['engine_version']}, {fields['model']}"
    if "concurrency" in fields:
        case = f"{fields['concurrency']} at a time of {fields['input_tokens']} + {fields['output_tokens']}"
        return (
            f"{lead}, {case}: {fields['output_tokens_per_s']:.1f} tokens/s; TTFT {fields['ttft_ms_p50']:.1f} ms "
            f"(p99 {fields['ttft_ms_p99']:.1f}), between tokens {fields['itl_ms_p50']:.2f} ms "
            f"(p99 {fields['itl_ms_p99']:.2f})"
        )
    spread = f"({fields['ms_min']:.3f} to {fields['ms_max']:.3f})"
    return f"{lead}, batch {fields['batch']}: {fields['ms_per_token']:.3f} ms a token {spread}"


def run(options: Options, command: str) -> None:
    if importlib.util.find_spec(options.engine) is None:
        raise UsageError(f"engine: {options.engine} is not installed here (pip install {options.engine})")
    needed_gpu("a peer")
    kind, of = ("peer_load", load_fields_of) if options.concurrency else ("peer", fields_of)
    origin = provenance.collect(
        command, f"experiments.peers.{options.engine}_{'load_' if options.concurrency else ''}driver"
    )
    with Log(in_path(options.results)) as log:
        for model in options.models:
            for found in drive(options, model):
                fields = of(options, model, found)
                log.append(record.new(kind, **fields, **origin, date=provenance.now()))
                print(said(fields), flush=True)
    print(f"Records: {log.path}")


def main(argv: list[str] | None = None) -> int:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the driver needs the device's memory
    return command_line.main(run, Options, "experiments.peers", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
