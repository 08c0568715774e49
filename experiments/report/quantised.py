"""The table of quantised weights: what a step reads and takes beside bf16, and what the rounding costs."""

import textwrap
from collections.abc import Sequence

from experiments.accuracy import table as accuracy
from experiments.accuracy.text import STORIES
from experiments.bench import tables
from experiments.bench.models import QUANTISED, WEIGHTS
from experiments.bench.record import Record
from experiments.bench.tables import Table, number
from experiments.report.claim import PEERS, alike, span, steps_of
from experiments.report.origin import origin
from experiments.report.sections import WIDTH

TRAINED = ("tiny", "stories260K")
"""Whose accuracy is told: random weights have none."""
HEADER = (
    "model", "weights", "GB a token (bf16)", "floor ms", "**ms a token** (p5 to p95)", "times bf16",
    f"KL of {', '.join(TRAINED)}",
)  # fmt: skip
THEIRS = "vLLM fp8 ms"
COMMAND = "python -m experiments.decode --config=decode.py --implementations=triton"
ACCURACY = f"python -m experiments.accuracy --model={TRAINED[0]}"
WHAT = (
    "Quantised weights, batch 1: a scale an output, or with -g128 one for 128 inputs; with -a8 activations in 8 bits "
    "too. KL is what rounding the layers of two trained models costs: mean nats of the next token on stories."
)


def quantised(records: Sequence[Record], device: str) -> str:
    """The table of one device in Markdown, with where it comes from; '' where there is no record of such weights.

    Accuracy is that of all records: it has no device.
    """
    mine = [found for found in records if found["device"] == device]
    steps = {found["model"]: found for found in steps_of(mine) if found["batch"] == 1}
    shown = sorted((found for model, found in steps.items() if model in QUANTISED), key=_order)
    if not shown:
        return ""
    published = dict.fromkeys(QUANTISED[found["model"]][0] for found in shown)
    theirs = {model: _theirs(model, shown[0], mine) for model in published}
    plain = [steps[model] for model in published if model in steps]
    models = ",".join(found["model"] for found in [*plain, *shown])
    commands = [f"KL: `{ACCURACY}`, and with the folder of {TRAINED[1]}"]
    if measured := ",".join(peers[0]["model"] for peers in theirs.values() if peers):
        commands.append(f"vLLM: `{PEERS} --models={measured}`")
    return "\n\n".join([
        textwrap.fill(WHAT, WIDTH),
        tables.markdown(*_table(shown, steps, _kl(records), theirs)),
        f"{origin([*plain, *shown], f'{COMMAND} --models={models}')} {'; '.join(commands)}.",
    ])  # fmt: skip


def _table(
    shown: Sequence[Record], steps: dict[str, Record], kl: dict[tuple[str, str], float], theirs: dict[str, list[Record]]
) -> Table:
    body = []
    for found in shown:
        model, weights = QUANTISED[found["model"]]
        plain, size = steps.get(model), number(found["bytes"] / 1e9)
        costs = [kl.get((trained, weights)) for trained in TRAINED]
        body.append([
            model, weights, f"{size} ({number(plain['bytes'] / 1e9)})" if plain else size,
            number(found["floor_ms"], ".3f"),
            f"**{found['ms_per_token']:.3f}** ({found['ms_p5']:.3f} to {found['ms_p95']:.3f})",
            number(plain["ms_per_token"] / found["ms_per_token"] if plain else None),
            ", ".join(str(number(cost, ".1e")) for cost in costs),
            *([span(theirs[model])] if any(theirs.values()) else []),
        ])  # fmt: skip
    return (*HEADER, *([THEIRS] if any(theirs.values()) else [])), body


def _order(found: Record) -> tuple[str, int]:
    """By model, then in the order of WEIGHTS."""
    model, weights = QUANTISED[found["model"]]
    return model, WEIGHTS.index(weights)


def _kl(records: Sequence[Record]) -> dict[tuple[str, str], float]:
    """(trained model, format) -> the newest mean divergence on stories."""
    found = [one for one in accuracy.newest(records) if one["status"] == "ok" and one["text"] == STORIES]
    return {(one["model"], one["format"]): one["kl_mean"] for one in found}


def _theirs(model: str, step: Record, records: Sequence[Record]) -> list[Record]:
    """vLLM's steps of a model in fp8, at the case of a step."""
    case = step | dict(model=f"{model}-fp8")
    found = [one for one in records if one["kind"] == "peer" and one["status"] == "ok" and one["engine"] == "vllm"]
    return [one for one in found if alike(one, case)]
