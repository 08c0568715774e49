"""Trains the small LLaMA of tokenspeed/tiny, on text that experiments/train_tiny/stories makes up.

    python -m experiments.train_tiny --out=out/tiny [--seed=0] [--steps=0]

makes the text, a tokenizer and a model of 1.1 million parameters, takes about 12 minutes on two cores, and writes a
checkpoint folder in the Hugging Face layout, whole or not at all. The same seed gives the same folder on one machine.
"""

import dataclasses
import itertools
import sys
import time
from pathlib import Path

import numpy as np

from experiments.bench import options as command_line
from experiments.bench.errors import UsageError
from experiments.bench.options import check_least
from experiments.train_tiny.recipe import Recipe
from experiments.train_tiny.tokenizer import files, make_tokenizer
from experiments.train_tiny.training import held_out_loss, sample, train
from tokenspeed.weights import checkpoint

PROMPTS = ("Once upon a time", [("user", "Tell me a story about a rabbit.")])
"""What the samples at the end continue or answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to make.

    Attributes:
        out: the folder to write; it must not exist yet. seed: of the text, the weights and the samples.
        steps: optimiser steps; 0 for the recipe's.
    """

    out: str = ""
    seed: int = 0
    steps: int = 0

    def __post_init__(self):
        check_least(self, seed=0, steps=0)
        if not self.out:
            raise UsageError("out: expected the folder to write")
        if Path(self.out).exists():
            raise UsageError(f"out: {self.out} exists already")


def make(recipe: Recipe, out: Path) -> None:
    """Trains and writes the folder."""
    begun = time.perf_counter()
    out.parent.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is told before the training
    tokenizer = make_tokenizer(recipe)
    if tokenizer.get_vocab_size() != recipe.vocab_size:
        raise ValueError(f"the text gives {tokenizer.get_vocab_size()} tokens, not {recipe.vocab_size}: add documents")
    model, losses = train(recipe, tokenizer)
    print(
        f"{model.config.num_parameters:,} parameters, {recipe.steps * recipe.batch * recipe.length:,} tokens, "
        f"{time.perf_counter() - begun:.0f} s; loss {np.mean(losses[-20:]):.3f}, "
        f"held out {held_out_loss(recipe, model, tokenizer):.3f}"
    )
    checkpoint.save(out, model, files(recipe, tokenizer))
    print(f"written: {out}")
    for prompt, temperature in itertools.product(PROMPTS, (0.0, 0.7)):
        how = f"sampled at {temperature}" if temperature else "greedy"
        length = min(256, recipe.max_positions)
        print(f"\n{prompt!r}, {how}:")
        print(sample(model, tokenizer, prompt, temperature=temperature, seed=recipe.seed, length=length))


def run(options: Options, _: str) -> None:
    recipe = Recipe(seed=options.seed)
    make(dataclasses.replace(recipe, steps=options.steps or recipe.steps), Path(options.out))


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.train_tiny", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
