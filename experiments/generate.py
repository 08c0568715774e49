"""The command line's own figures: time to the first token and decode, from random weights.

    python -m experiments.generate --models=llama-3.1-8b,llama-3.2-1b --prompts=128,1024,8192

runs `python -m tokenspeed generate --random-weights configs/models/MODEL.json --prompt-ids - --json` for each model and
length of prompt, twice, in about two minutes a model on a GPU. The second run's figures are kept; a row says so where
the two drew different tokens. Rows are appended to the results.
"""

import contextlib
import io
import json
import pathlib
import sys
from typing import Any
from unittest import mock

import numpy as np
from absl import app, flags

from experiments import provenance
from experiments.models import FOLDER, config_of
from pallas_kernels.common import devices
from tokenspeed import cli

_MODELS = flags.DEFINE_list("generate_models", ["llama-3.1-8b", "llama-3.2-1b"], "files of configs/models")
_PROMPTS = flags.DEFINE_list("prompts", ["128", "1024", "8192"], "lengths of prompts, in tokens")
_OUTPUT = flags.DEFINE_integer("max_tokens", 129, "tokens to draw, greedily", lower_bound=2)
_RESULTS = flags.DEFINE_string(
    "generate_results", "out/generate-{device}.jsonl", "JSON lines that rows are appended to"
)


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


def main(argv) -> None:
    try:
        cases = [(model, int(length)) for model in _MODELS.value for length in _PROMPTS.value]
    except ValueError:
        raise app.UsageError(f"prompts: expected lengths, got {','.join(_PROMPTS.value)}") from None
    for model, length in cases:
        if not (FOLDER / f"{model}.json").is_file():
            known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.json")))
            raise app.UsageError(f"generate_models: expected some of {known}, got {model!r}")
        if not 1 <= length <= config_of(model).max_positions - _OUTPUT.value:
            raise app.UsageError(f"prompts: {length} and {_OUTPUT.value} more are not in the positions of {model}")
    origin = provenance.collect(["python", "-m", "experiments.generate", *argv[1:]])
    device = devices.find(origin["device"])
    path = pathlib.Path(_RESULTS.value.format(device=device.key if device else "cpu"))
    path.parent.mkdir(parents=True, exist_ok=True)
    for model, length in cases:
        row = row_of(model, length, _OUTPUT.value) | dict(date=provenance.now()) | origin
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{model}, {length}: TTFT {row['ttft_ms']:.1f} ms, decode {row['decode_tokens_per_s']:.1f} tokens/s, "
            f"{row['percent_of_ceiling']:.1f}% of {row['read_ceiling_gbps']:.0f} GB/s; {row['implementation']}, "
            f"{row['status']}",
            flush=True,
        )
    print(f"rows appended to {path}")


if __name__ == "__main__":
    app.run(main, argv=sys.argv)
