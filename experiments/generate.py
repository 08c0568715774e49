"""The command line's own figures: time to the first token and decode, from random weights.

    python -m experiments.generate [--models=llama-3.1-8b,llama-3.2-1b] [--prompts=128,1024,8192] [--max_tokens=129]

runs `python -m tokenspeed generate --random-weights configs/models/MODEL.json --prompt-ids - --json` for each model and
length of prompt, twice. The second run's figures are kept; a row says so where the two drew different tokens. Rows are
appended to the results.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np

from experiments import provenance
from experiments.models import FOLDER, config_of
from experiments.options import UsageError, check_published, fail
from experiments.row_log import Log, ResultsError
from pallas_kernels.common import devices
from tokenspeed import cli


def arguments(model: str, max_tokens: int) -> list[str]:
    """What the command line is given; the prompt's ids come by standard input."""
    config = str(FOLDER / f"{model}.json")
    fixed = ["--temperature", "0", "--ignore-eos", "--max-tokens", str(max_tokens), "--json"]
    return ["generate", "--random-weights", config, "--prompt-ids", "-", *fixed]


def run(model: str, prompt_tokens: int, max_tokens: int) -> dict[str, Any]:
    """The JSON that the command prints, for random token ids."""
    ids = np.random.default_rng(0).integers(0, config_of(model).vocab_size, prompt_tokens)
    out, typed = io.StringIO(), io.StringIO(",".join(map(str, ids)))
    with mock.patch.object(sys, "stdin", typed), contextlib.redirect_stdout(out):
        status = cli.main(arguments(model, max_tokens))
    if status:
        raise RuntimeError(f"the command ended with status {status}")
    return json.loads(out.getvalue())


def row_of(model: str, prompt_tokens: int, max_tokens: int) -> dict[str, Any]:
    """Two runs: the figures of the second, and whether their tokens agree."""
    first, second = (run(model, prompt_tokens, max_tokens) for _ in range(2))
    tokens = [[sample["token_ids"] for sample in found["samples"]] for found in (first, second)]
    same = tokens[0] == tokens[1]
    shown = provenance.shown_command(["python", "-m", "tokenspeed", *arguments(model, max_tokens)])
    return dict(
        op="generate",
        model=model,
        rows=1,
        context=prompt_tokens,
        **second["figures"],
        tokens_checked=len(tokens[0][0]),
        status="ok" if same else "void: the tokens of two runs differ",
        generate_command=shown,
    )


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--models", default="llama-3.1-8b,llama-3.2-1b", help="files of configs/models")
    found.add_argument("--prompts", default="128,1024,8192", help="lengths of prompts, in tokens")
    found.add_argument("--max_tokens", type=int, default=129, help="tokens to draw, greedily")
    found.add_argument("--results", default="out/generate-{device}.jsonl", help="JSON lines that rows are appended to")
    return found


def cases(models: str, prompts: str, max_tokens: int) -> list[tuple[str, int]]:
    """(model, length of its prompt), checked."""
    if max_tokens < 2:
        raise UsageError(f"max_tokens: expected 2 or more, got {max_tokens}")
    try:
        lengths = [int(length) for length in prompts.split(",")]
    except ValueError:
        raise UsageError(f"prompts: expected lengths, got {prompts!r}") from None
    found = [(model, length) for model in models.split(",") for length in lengths]
    check_published(models.split(","), FOLDER)
    for model, length in found:
        if not 1 <= length <= config_of(model).max_positions - max_tokens:
            raise UsageError(f"prompts: {length} and {max_tokens} more are not in the positions of {model}")
    return found


def measure(argv: Sequence[str], options: argparse.Namespace) -> None:
    todo = cases(options.models, options.prompts, options.max_tokens)
    origin = provenance.collect(["python", "-m", "experiments.generate", *argv])
    device = devices.find(origin["device"])
    with Log(options.results.replace("{device}", device.key if device else "cpu")) as log:
        for model, length in todo:
            row = row_of(model, length, options.max_tokens) | dict(date=provenance.now()) | origin
            log.append(row)
            print(
                f"{model}, {length}: TTFT {row['ttft_ms']:.1f} ms, decode {row['decode_tokens_per_s']:.1f} tokens/s, "
                f"{row['percent_of_ceiling']:.1f}% of {row['read_ceiling_gbps']:.0f} GB/s; {row['implementation']}, "
                f"{row['status']}",
                flush=True,
            )
    print(f"Rows: {log.path}")


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        measure(argv, parser().parse_args(argv))
    except (UsageError, ResultsError) as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
