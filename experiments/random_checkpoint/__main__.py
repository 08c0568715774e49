"""Writes a checkpoint of a known model with random weights, and a tokenizer that has all of its vocabulary.

    python -m experiments.random_checkpoint --out=DIR [--model=llama-3.1-8b] [--seed=0] [--tokenizer_only]

For measuring servers where no weights can be had: `python -m tokenspeed serve --model DIR` and vLLM load it. The
weights are normal, bfloat16, in shards of 1 GiB, of which one is in memory at a time. The tokenizer is byte-level BPE,
trained on text that is made up, with Llama 3's special tokens and a chat template. The folder appears whole or not at
all; with --tokenizer_only it has the tokenizer alone.
"""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

from experiments.bench import options as command_line
from experiments.bench.errors import UsageError
from experiments.bench.models import path_of
from experiments.bench.options import check_least
from experiments.random_checkpoint import weights
from experiments.random_checkpoint.tokenizer import LEAST, files, make_tokenizer, special_ids
from tokenspeed.models import hf_config
from tokenspeed.models.config import ConfigError
from tokenspeed.models.fields import read_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to make.

    Attributes:
        out: the folder to write; it must not exist yet. model: a name of configs/models, or the path of a config.json.
        seed: of weights and tokenizer. tokenizer_only: no weights and no config.
    """

    out: str = ""
    model: str = "llama-3.1-8b"
    seed: int = 0
    tokenizer_only: bool = False

    def __post_init__(self):
        check_least(self, seed=0)
        if not self.out:
            raise UsageError("out: expected the folder to write")
        if Path(self.out).exists():
            raise UsageError(f"out: {self.out} exists already")


def config_of(model: str) -> dict:
    """The config.json: that of the model, in bfloat16 and with the tokenizer's ids.

    Raises:
        UsageError: there is none, or it is of no model that can be made.
    """
    path = path_of(model, "model")
    try:
        found = read_json(path)
        vocab_size = hf_config.from_dict(found).vocab_size
    except ConfigError as error:
        raise UsageError(f"model: {model}: {error}") from None
    if vocab_size < LEAST:
        raise UsageError(f"model: {model}: vocab_size: expected {LEAST} or more, got {vocab_size}")
    return found | special_ids(vocab_size) | dict(torch_dtype="bfloat16")


def run(options: Options, _: str) -> None:
    out, config = Path(options.out), config_of(options.model)
    known = hf_config.from_dict(config)
    size = 0 if options.tokenizer_only else weights.ITEM * known.num_parameters
    out.parent.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(out.parent).free):
        raise UsageError(f"out: the weights take {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        print(f"a tokenizer of {known.vocab_size:,} tokens ...", flush=True)
        made = files(make_tokenizer(known.vocab_size, options.seed), known.max_positions)
        if not options.tokenizer_only:
            weights.write(partial, known, options.seed, told=lambda line: print(line, flush=True))
            drawn = dict(do_sample=True, temperature=0.6, top_p=0.9)
            # The config last: a folder without one does not load.
            made |= {"generation_config.json": special_ids(known.vocab_size) | drawn, "config.json": config}
        for name, content in made.items():
            (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    print(f"written: {out}")


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.random_checkpoint", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
