"""A decode step of other engines, on the same card: what our figures stand beside.

    python -m experiments.peers --engine=vllm [--models=llama-3.1-8b,llama-3.2-1b] [--batches=1,8,16] [--in_process]
    python -m experiments.peers --engine=torch

needs an NVIDIA GPU and the engine installed; run it beside `experiments.decode`. Weights are random, contexts those of
that benchmark, each engine decodes in its own loop, in a process of its own (experiments/peers/*_driver.py):

vllm: offline `LLM.generate`, greedy; `steps` + 1 tokens less 1 token from the same prompts, by `steps`, so that prefill
    and start cancel. `--in_process` keeps its engine in the driver's process, where 1B is faster.
torch: a plain LLaMA of our own under `torch.compile(mode="max-autotune")`, with CUDA graphs.

A record (kind 'peer' of experiments/bench/kinds.py) is appended for each model and batch. Figures move from day to
day, so every record stays: tables show ranges.
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
from experiments.bench.models import FOLDER, check_models, config_of
from experiments.bench.options import check_least, check_name, check_some
from experiments.bench.record import Record
from experiments.decode.options import check_context

ENGINES = ("vllm", "torch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        engine: one of ENGINES. models: names in configs/models. batches: sequences at a time.
        context: positions before the first step. steps: tokens that a time is the mean of. repeats: times.
        in_process: vLLM's engine in the driver's own process.
        results: the file that records are appended to.
    """

    engine: str = ""
    models: tuple[str, ...] = ("llama-3.1-8b", "llama-3.2-1b")
    batches: tuple[int, ...] = (1,)
    context: int = 1024
    steps: int = 127
    repeats: int = 5
    in_process: bool = False
    results: str = "out/peers-{device}.jsonl"

    def __post_init__(self):
        check_name("engine", self.engine, ENGINES)
        check_some(self, "models", "batches")
        check_models("models", self.models)
        check_least(self, batches=1, context=1, steps=1, repeats=2)
        for model in self.models:
            check_context(model, config_of(model), self.context, self.steps)


def drive(options: Options, model: str) -> Iterator[dict[str, Any]]:
    """What the engine's driver prints, a JSON object for each batch."""
    request = dict(
        config=str(FOLDER / f"{model}.json"), batches=options.batches, context=options.context, steps=options.steps,
        repeats=options.repeats, in_process=options.in_process,
    )  # fmt: skip
    driver = Path(__file__).with_name(f"{options.engine}_driver.py")
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
    return found if isinstance(found, dict) and found.keys() == {"batch", "ms", "version", "how"} else None


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


def run(options: Options, command: str) -> None:
    if importlib.util.find_spec(options.engine) is None:
        raise UsageError(f"engine: {options.engine} is not installed here (pip install {options.engine})")
    needed_gpu("a peer")
    origin = provenance.collect(command, f"experiments.peers.{options.engine}_driver")
    with Log(in_path(options.results)) as log:
        for model in options.models:
            for found in drive(options, model):
                fields = fields_of(options, model, found)
                log.append(record.new("peer", **fields, **origin, date=provenance.now()))
                print(
                    f"{options.engine} {found['version']}, {model}, batch {fields['batch']}: "
                    f"{fields['ms_per_token']:.3f} ms a token ({fields['ms_min']:.3f} to {fields['ms_max']:.3f})",
                    flush=True,
                )
    print(f"Records: {log.path}")


def main(argv: list[str] | None = None) -> int:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the driver needs the device's memory
    return command_line.main(run, Options, "experiments.peers", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
