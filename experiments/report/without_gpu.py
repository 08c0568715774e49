"""The sections of RESULTS.md that no GPU made: a processor's times, and figures that are those of any device."""

from collections.abc import Sequence

from experiments.accuracy import table as accuracy
from experiments.bench.record import Record
from experiments.decode import table as decode
from experiments.report.sections import Section, Sections


def accuracy_section(records: Sequence[Record]) -> Section:
    found = accuracy.newest(records)
    what = (
        "All projections of the layers rounded to nearest, everything else and all activations in float32, against the "
        "unquantised model on the same text. KL in nats; top-1: the share of positions with the same argmax, *in "
        "float64* that of both models in float64, *no near ties* that without positions whose two best tokens are "
        "within 0.01 nats, unquantised. Errors are those of the residual stream after each layer. By XLA on "
        f"{', '.join(sorted({one['device'] for one in found}))}."
    )
    command = "python -m experiments.accuracy --model=tiny  # or a folder"
    return "Accuracy of quantised weights", what, accuracy.accuracy_table(found), found, command


def cpu_decode_section(records: Sequence[Record]) -> Section:
    found = [
        one for one in decode.newest(records) if one["device"].startswith("cpu") and one["implementation"] == "xla"
    ]
    what = (
        f"XLA's step on {', '.join(sorted({one['device'] for one in found}))}. It writes all of a quantised weight out "
        "in the dtype of the activations before it multiplies, so quantising saves memory there and costs time."
    )
    command = (
        "python -m experiments.decode --config=decode.py --models=qwen2.5-0.5b,qwen2.5-0.5b-int8,"
        "qwen2.5-0.5b-int4-g128 --steps=8 --sequences=2 --repeats=3"
    )
    return "Decode on a processor", what, decode.decode_table(found), found, command


WITHOUT_GPU: Sections = (cpu_decode_section, accuracy_section)
