"""The table of accuracy."""

from collections.abc import Sequence
from typing import Any

from experiments.accuracy.formats import TARGETS
from experiments.bench import record
from experiments.bench.record import Record
from experiments.bench.tables import Table, number

HEADER = (
    "model", "text", "weights", "head", "bits a weight", "MB (unquantised)", "KL mean", "KL p99", "top-1 %",
    "in float64", "no near ties", "target", "perplexity (unquantised)", "error by layer %",
)  # fmt: skip


def newest(records: Sequence[Record]) -> list[Record]:
    """The newest record of each model, format and text, by model in the order of their records."""
    found = record.newest(records, "accuracy")
    models = list(dict.fromkeys(one["model"] for one in found))
    return sorted(found, key=lambda one: models.index(one["model"]))


def accuracy_table(records: Sequence[Record]) -> Table:
    """The newest of each; what has no figures says why."""
    found = newest(records)
    extras = any(one["status"] != "ok" for one in found)
    lines = [[*_line(one), *([one["status"]] if extras else [])] for one in found]
    return (*HEADER, *(["status"] if extras else [])), lines


def _line(one: Record) -> list[Any]:
    top1, target = one["top1"], TARGETS.get(one["format"].partition(" ")[0])
    told = "-" if top1 is None or target is None else f"{100 * target:g} {'met' if top1 >= target else 'missed'}"
    errors = " ".join(f"{100 * error:.2g}" for error in one["layer_errors"] or ())
    size = _beside(_times(one["model_bytes"], 1e-6), _times(one["reference_bytes"], 1e-6))
    perplexity = _beside(number(one["perplexity"], ".4f"), number(one["perplexity_reference"], ".4f"))
    return [
        one["model"], one["text"], one["format"], one["head"], number(one["bits_per_weight"]), size,
        number(one["kl_mean"], ".1e"), number(one["kl_p99"], ".1e"), _times(top1, 100),
        _times(one["top1_float64"], 100), _times(one["top1_clear"], 100), told, perplexity, errors or "-",
    ]  # fmt: skip


def _times(value: float | None, factor: float) -> Any:
    return number(None if value is None else factor * value)


def _beside(value: Any, reference: Any) -> str:
    return f"{value} ({reference})"
