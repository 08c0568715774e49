"""The cases and tiles of a sweep, in the order in which they are tried."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.bench import cases
from experiments.bench.cases import Case
from experiments.bench.errors import UsageError
from experiments.sweep.options import Options
from pallas_kernels import Device


def all_cases(
    ops: Sequence[str], models: Sequence[str], rows: Sequence[int], dtypes: Sequence[str], contexts: Sequence[int]
) -> list[Case]:
    """Every combination; only attention has one case per context."""
    return [
        cases.make(op, model, rows=row, context=context, dtype=dtype)
        for dtype in dtypes
        for row in rows
        for model in models
        for op in ops
        for context in (contexts if op == "attention" else contexts[:1])
    ]


def of_options(options: Options) -> list[Case]:
    """The cases of a sweep."""
    return all_cases(options.ops, options.models, options.rows, options.dtypes, options.contexts)


def space_of(case: Case, options: Options) -> list[Any]:
    """The case's search space, as far as the options restrict it."""
    return [tile for tile in case.known.search_space(case.shape) if _allowed(tile, options)]


def check_restrictions(cases_: Sequence[Case], options: Options) -> None:
    """Raises where the options leave a case no tile."""
    for case in cases_:
        if options.restrictions and not space_of(case, options):
            asked = ", ".join(f"{field}={values}" for field, values in options.restrictions.items())
            raise UsageError(f"{asked}: no tile of {case.op}'s search space for {case.model} is like this")


def tiles_of(case: Case, options: Options, device: Device, limit: int) -> list[Any]:
    """The tiles to try: the incumbents first, then the restricted search space, infeasible tiles among them.

    With a limit (not 0), the feasible ones only, and of those an even sample of that many, incumbents included.
    """
    first = case.incumbents(device)
    rest = [tile for tile in space_of(case, options) if tile not in first]
    if limit:
        rest = [tile for tile in rest if case.known.feasible(tile, case.shape, device)]
        rest = even_sample(rest, limit - len(first))
    return first + rest


def _allowed(tile: Any, options: Options) -> bool:
    fields = dataclasses.asdict(tile)
    return all(fields[name] in values for name, values in options.restrictions.items() if name in fields)


def even_sample(items: list, count: int) -> list:
    """`count` of the items, evenly spaced, or all where there are no more."""
    if count >= len(items):
        return items
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(max(count, 0))]
