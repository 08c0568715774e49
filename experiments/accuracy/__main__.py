"""What quantised weights cost in accuracy: the same text through the quantised model and through the one in float32.

    python -m experiments.accuracy [--model=DIR] [--formats=int8,fp8,int4-g32,...] [--text=FILE] [--tokens=4096]
    python -m experiments.accuracy --model=QUANTISED --reference=DIR

The projections of all layers are rounded to the nearest numbers of each format, in memory; everything else, and every
activation, is float32. Of a model that is quantised already, the pair is compared. Each token is given the true ones
before it (teacher forcing), over sequences of `length` tokens. By default the text is stories and chats of the kind
that the model that ships was trained on, of another seed; a tokenizer without their special tokens gets stories alone.

KL is the Kullback-Leibler divergence of the next token's distribution from the unquantised model's, in nats. Top-1
agreement is the share of positions at which both have the same argmax; `top1_clear` is that share without near ties,
positions at which the unquantised model's two best are within 0.01 nats. `top1_float64` is the agreement of both in
float64 from embedding to logits, the quantised weights being what their numbers stand for: where it is the same, the
rounding of weights is all that is lost, and arithmetic loses nothing. The error of a layer is that of the residual
stream after it, RMS of the difference over RMS. Bits a weight count scales and zero points.

A record for each format (kind 'accuracy' of experiments/bench/kinds.py) is appended to the results; one that cannot be
made says why, and the exit status is 1.
"""

import dataclasses
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.accuracy.compare import compare
from experiments.accuracy.formats import bytes_and_numbers, head_of, name_of, quantised
from experiments.accuracy.options import Options
from experiments.accuracy.table import accuracy_table
from experiments.accuracy.text import STORIES, file_rows, story_rows
from experiments.bench import options as command_line
from experiments.bench import provenance, record, tables
from experiments.bench.device import in_path, reason_of
from experiments.bench.errors import UsageError
from experiments.bench.formats import parsed
from experiments.bench.log import Log
from experiments.bench.record import Record
from tokenspeed.measure.available_memory import NotEnoughMemory
from tokenspeed.models import hf_config
from tokenspeed.models.config import ConfigError, ModelConfig
from tokenspeed.models.decoder import Llama, QuantisedLinear
from tokenspeed.models.quantisation import HEAD
from tokenspeed.text.errors import TokenizerError
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.weights import checkpoint
from tokenspeed.weights.shards import CheckpointError
from tokenspeed.weights.tiny import folder_of

MEASURING = ("experiments.accuracy.compare", "experiments.accuracy.formats", "experiments.accuracy.text")


@dataclasses.dataclass(frozen=True)
class Given:
    """What is compared: the unquantised model, one that is quantised already or None, and the rows of the text."""

    reference: Llama
    model: Llama | None
    rows: list[np.ndarray]


def given(options: Options) -> Given:
    """Reads the folders and the text.

    Raises:
        UsageError: something is wrong with them.
    """
    try:
        config, reference = configs(options)
        rows = rows_of(options, config)
        folder = folder_of(options.model)
        if config.quantisation is None:
            return Given(checkpoint.load(folder, config, dtype="float32"), None, rows)
        return Given(
            checkpoint.load(folder_of(options.reference), reference, dtype="float32"),
            checkpoint.load(folder, config, dtype="float32"),
            rows,
        )
    except (ConfigError, CheckpointError, TokenizerError, NotEnoughMemory) as error:
        raise UsageError(str(error)) from None


def configs(options: Options) -> tuple[ModelConfig, ModelConfig]:
    """Those of the model and of the reference, which is not quantised and else alike."""
    config = hf_config.from_folder(folder_of(options.model))
    if config.quantisation is None:
        if options.reference:
            raise UsageError(f"reference: expected none, since {options.model} is not quantised")
        if config.tied and options.head in ("int8", "same"):
            raise UsageError(f"head: expected none, since that of {options.model} is its embedding table")
        return config, config
    if not options.reference:
        raise UsageError(f"reference: expected the unquantised folder, since {options.model} is quantised already")
    reference = hf_config.from_folder(folder_of(options.reference))
    if reference.quantisation is not None:
        raise UsageError(f"reference: expected an unquantised model, but {options.reference} is quantised, too")
    aside = ("quantisation", "dtype", "bos_id", "eos_ids")
    for field in dataclasses.fields(ModelConfig):
        wanted, found = (getattr(one, field.name) for one in (config, reference))
        if field.name not in aside and wanted != found:
            raise UsageError(f"reference: {field.name}: expected {wanted} as in {options.model}, got {found}")
    return config, reference


def rows_of(options: Options, config: ModelConfig) -> list[np.ndarray]:
    """The text as rows of at most `length` positions and the token after them."""
    tokenizer = Tokenizer.from_folder(folder_of(options.model))
    if tokenizer is None:
        raise UsageError(f"model: {options.model}: expected a tokenizer.json in the folder")
    if tokenizer.vocab_size > config.vocab_size:
        raise UsageError(
            f"model: {options.model}: expected at most {config.vocab_size} tokens, its tokenizer has "
            f"{tokenizer.vocab_size}"
        )
    length = min(options.length, config.max_positions)
    count = -(-options.tokens // length)
    if options.text:
        return file_rows(options.text, tokenizer, length, count)
    return story_rows(tokenizer, length, count)


def candidates(options: Options, found: Given) -> Iterator[tuple[str, str, Llama | Exception]]:
    """(format, what the head is stored as, the model, or why it cannot be made) of each quantised model."""
    if found.model is not None:
        quantisation = found.model.config.quantisation
        assert quantisation is not None
        schemes = dict.fromkeys(scheme for _, scheme in quantisation.schemes)
        head = quantisation.scheme_of(HEAD) if isinstance(found.model.head, QuantisedLinear) else None
        yield " and ".join(map(name_of, schemes)), name_of(head) if head else "none", found.model
        return
    for name in options.chosen:
        format = parsed(name)
        head = head_of(format, options.head, found.reference.config.tied)
        try:
            model = quantised(found.reference, format, head)
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            model = error
        yield format.name, head.name if head else "none", model


def figures(reference: Llama, model: Llama, rows: list[np.ndarray]) -> Record:
    """What a model gave, as fields."""
    itemsize = jnp.dtype(reference.config.dtype).itemsize
    held, numbers = bytes_and_numbers(model)
    whole = reference.config.num_parameters * itemsize
    return compare(reference, model, rows) | dict(
        status="ok",
        bits_per_weight=round(8 * held / numbers, 4),
        model_bytes=whole - numbers * itemsize + held,
        reference_bytes=whole,
    )


def measured(options: Options, found: Given) -> Iterator[Record]:
    """The fields of each record, as they come."""
    lead = dict(
        model=folder_of(options.model).resolve().name, dtype="f32", implementation="xla",
        text=Path(options.text).name if options.text else STORIES, sequences=len(found.rows),
        length=len(found.rows[0]) - 1,
    )  # fmt: skip
    for name, head, model in candidates(options, found):
        fields = lead | dict(format=name, head=head)
        try:
            if isinstance(model, Exception):
                raise model
            yield fields | figures(found.reference, model, found.rows)
        except (ValueError, ArithmeticError, jax.errors.JaxRuntimeError) as error:
            yield fields | dict(status=f"failed: {reason_of(error)}")
        del model
        gc.collect()  # a cycle would keep it while the next is made


def run(options: Options, command: str) -> int:
    origin = provenance.collect(command, *MEASURING)
    found = given(options)
    records: list[Record] = []
    with Log(in_path(options.results)) as log:
        for fields in measured(options, found):
            records.append(record.new("accuracy", **fields, **origin, date=provenance.now()))
            log.append(records[-1])
            print(f"{fields['model']} in {fields['format']}: {fields['status']}", flush=True)
    print("\n" + tables.text(*accuracy_table(records)))
    print(f"Records: {log.path}")
    return int(any(one["status"] != "ok" for one in records))


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.accuracy", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
