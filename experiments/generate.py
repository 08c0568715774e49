"""The command line's own figures: time to the first token and decode, from random weights.

    python -m experiments.generate [--models=llama-3.1-8b,llama-3.2-1b] [--prompts=128,1024,8192] [--max_tokens=129]

needs an NVIDIA GPU. It runs `python -m tokenspeed generate --random-weights configs/models/MODEL.json --prompt-ids -
--json` for each model and length of prompt, twice, and keeps the second run's figures; a record (kind 'generate' of
experiments/bench/kinds.py) says so where the two drew different tokens.
"""

import contextlib
import dataclasses
import io
import json
import sys
from typing import Any
from unittest import mock

import numpy as np

from experiments.bench import options as command_line
from experiments.bench import provenance, record
from experiments.bench.device import in_path, needed_gpu
from experiments.bench.errors import UsageError
from experiments.bench.log import Log
from experiments.bench.models import DTYPES, FOLDER, check_models, config_of
from experiments.bench.options import check_least, check_some, shown_command
from experiments.bench.record import Record
from experiments.bench.tables import number
from tokenspeed import cli

MEASURING = ("tokenspeed.cli", "tokenspeed.llm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to run.

    Attributes:
        models: names in configs/models. prompts: their lengths, in tokens. max_tokens: tokens to draw, greedily.
        results: the file that records are appended to.
    """

    models: tuple[str, ...] = ("llama-3.1-8b", "llama-3.2-1b")
    prompts: tuple[int, ...] = (128, 1024, 8192)
    max_tokens: int = 129
    results: str = "out/generate-{device}.jsonl"

    def __post_init__(self):
        check_some(self, "models", "prompts")
        check_models("models", self.models)
        check_least(self, prompts=1, max_tokens=2)
        for model in self.models:
            most = config_of(model).max_positions - self.max_tokens
            if max(self.prompts) > most:
                raise UsageError(f"prompts: expected at most {most} tokens for {model}, got {max(self.prompts)}")


def arguments(model: str, max_tokens: int) -> list[str]:
    """What the command line is given; the prompt's ids come by standard input."""
    config = str(FOLDER / f"{model}.json")
    fixed = ["--temperature", "0", "--ignore-eos", "--max-tokens", str(max_tokens), "--json"]
    return ["generate", "--random-weights", config, "--prompt-ids", "-", *fixed]


def output_of(model: str, prompt_tokens: int, max_tokens: int) -> dict[str, Any]:
    """The JSON that the command prints, for random token ids."""
    ids = np.random.default_rng(0).integers(0, config_of(model).vocab_size, prompt_tokens)
    out, typed = io.StringIO(), io.StringIO(",".join(map(str, ids)))
    with mock.patch.object(sys, "stdin", typed), contextlib.redirect_stdout(out):
        status = cli.main(arguments(model, max_tokens))
    if status:
        raise RuntimeError(f"the command ended with status {status}")
    return json.loads(out.getvalue())


def measured(model: str, prompt_tokens: int, max_tokens: int) -> Record:
    """Two runs: the figures of the second, as fields of a record, and whether their tokens agree."""
    first, second = (output_of(model, prompt_tokens, max_tokens) for _ in range(2))
    tokens = [[sample["token_ids"] for sample in found["samples"]] for found in (first, second)]
    figures = second["figures"]
    short = {name: key for key, name in DTYPES.items()}
    return dict(
        model=model,
        dtype=short[figures["dtype"]],
        batch=1,
        context=prompt_tokens,
        implementation=figures["implementation"],
        status="ok" if tokens[0] == tokens[1] else "void: the tokens of two runs differ",
        ttft_ms=figures["ttft_ms"],
        tokens_per_s=figures["decode_tokens_per_s"],
        output_tokens=figures["output_tokens"],
        tokens_checked=len(tokens[0][0]),
        bytes=figures["bytes_per_step"],
        achieved_gbps=figures["achieved_gbps"],
        ceiling_gbps=figures["read_ceiling_gbps"],
        percent_of_ceiling=figures["percent_of_ceiling"],
        generate_command=shown_command(["python", "-m", "tokenspeed", *arguments(model, max_tokens)]),
    )


def run(options: Options, command: str) -> None:
    needed_gpu("the benchmark of the command line")
    origin = provenance.collect(command, *MEASURING)
    with Log(in_path(options.results)) as log:
        for model in options.models:
            for length in options.prompts:
                fields = measured(model, length, options.max_tokens)
                log.append(record.new("generate", **fields, **origin, date=provenance.now()))
                print(
                    f"{model}, {length}: TTFT {number(fields['ttft_ms'], '.1f')} ms, decode "
                    f"{number(fields['tokens_per_s'], '.1f')} tokens/s, {number(fields['percent_of_ceiling'], '.1f')}% "
                    f"of {number(fields['ceiling_gbps'], '.0f')} GB/s; {fields['implementation']}, {fields['status']}",
                    flush=True,
                )
    print(f"Records: {log.path}")


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.generate", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
