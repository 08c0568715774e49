"""`python -m tokenspeed convert`: its options, and what they start."""

import argparse
import math
import sys
from pathlib import Path

from tokenspeed.arguments import number
from tokenspeed.models.config import ConfigError
from tokenspeed.models.fields import read_text
from tokenspeed.weights.partial_folder import partial_of
from tokenspeed.weights.recipe import HEADS, WEIGHTS, Recipe
from tokenspeed.weights.tiny import folder_of


def add_to(commands) -> None:
    """The command and its options, to those of a parser."""
    convert = commands.add_parser(
        "convert",
        help="quantise a checkpoint",
        description="Quantise a checkpoint: a folder in the compressed-tensors format, which vLLM loads too.",
        epilog="An interrupted run leaves OUT.partial; the same command goes on from there.",
    )
    convert.add_argument("--model", metavar="DIR", required=True, help="a checkpoint folder ('tiny': ours)")
    convert.add_argument("--out", metavar="DIR", required=True, help="the folder to write, which must not exist")
    convert.add_argument("--weights", choices=WEIGHTS, required=True, help="what they are stored as")
    convert.add_argument(
        "--group-size", type=int, metavar="N", help="inputs that share a scale (default: int4 128, int8 all of them)"
    )
    convert.add_argument("--asymmetric", action="store_true", help="with zero points (int4, int8)")
    convert.add_argument(
        "--head",
        choices=HEADS,
        help="what the head is stored as; not every engine loads one that is quantised "
        "(default: int8 with int4, none otherwise or where it is the embedding table)",
    )
    convert.add_argument(
        "--ignore", metavar="NAME", action="append", default=[],
        help="a projection that is not quantised, or re:EXPRESSION that matches from its beginning (repeatable)",
    )  # fmt: skip
    convert.add_argument(
        "--text", metavar="FILE", help="scale channels by their activations over this text (AWQ) before rounding"
    )
    convert.add_argument(
        "--shard-gb", type=float, metavar="GB", default=4, help="of a file, and in memory (default: %(default)s)"
    )
    convert.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Converts, and says how much was written.

    Raises:
        ValueError, TypeError, OSError, MemoryError: an option, or the folder, is wrong, or there is no room.
    """
    from tokenspeed.weights.convert import convert

    folder = folder_of(arguments.model)
    if arguments.model == "" or not folder.is_dir():
        raise ConfigError(f"--model: no folder {arguments.model!r}")
    if not Path(arguments.out).name:
        raise ValueError(f"--out: expected a folder to make, got {arguments.out!r}")
    recipe = Recipe(
        weights=arguments.weights,
        group_size=arguments.group_size,
        symmetric=not arguments.asymmetric,
        head=arguments.head,
        ignore=tuple(arguments.ignore),
    )
    shard_bytes = round(number("--shard-gb", arguments.shard_gb, 0, math.inf, above=True) * 1e9)
    text = None if arguments.text is None else read_text(Path(arguments.text))
    try:
        before, after = convert(
            folder, arguments.out, recipe, text=text, shard_bytes=shard_bytes, progress=sys.stderr.isatty()
        )
    except KeyboardInterrupt:
        if (partial := partial_of(Path(arguments.out))).exists():
            print(f"interrupted; the same command goes on from {partial}", file=sys.stderr)
        raise
    print(f"{arguments.out}: {after / 1e9:.3f} GB of weights in place of {before / 1e9:.3f} GB")
