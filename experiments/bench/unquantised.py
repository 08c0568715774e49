"""The column that says how much faster a model is with quantised weights than as published."""

from collections.abc import Sequence
from typing import Any

from experiments.bench.models import QUANTISED
from experiments.bench.record import Record
from experiments.bench.tables import Table, number

TITLE = "times unquantised"


def with_ratio(
    header: Sequence[str],
    lines: list[list[Any]],
    shown: Sequence[Record],
    records: Sequence[Record],
    case: tuple[str, ...],
    ms: str,
) -> Table:
    """The table, with that column where any of its lines is of a model with quantised weights.

    Args:
        header, lines: of the table, a line for each of `shown`. records: among which the published model is looked for,
            one of each case. case: the fields of a case, 'model' among them. ms: the field of the time.
    """
    if not any(one["model"] in QUANTISED for one in shown):
        return header, lines
    times = {_key(one, case): one[ms] for one in records if one["status"] == "ok"}

    def ratio(one: Record) -> Any:
        own = QUANTISED.get(one["model"])
        plain = own and times.get(_key(one | dict(model=own[0]), case))
        return number(plain / one[ms] if plain and one["status"] == "ok" else None)

    return (*header, TITLE), [[*line, ratio(one)] for line, one in zip(lines, shown, strict=True)]


def _key(one: Record, case: tuple[str, ...]) -> tuple:
    return tuple(one[field] for field in case)
