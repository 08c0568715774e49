"""The cases and tiles of a sweep, in the order in which they are tried."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from experiments.bench import cases
from experiments.bench.cases import Case
from experiments.bench.errors import UsageError
from experiments.sweep.options import Options
from pallas_kernels import Device
from tokenspeed.models.kv_dtypes import AUTO

FEW_ROWS = 16
"""Of one tensor-core instruction; with more there are many more ways to cut a problem."""


def all_cases(
    ops: Sequence[str],
    models: Sequence[str],
    rows: Sequence[int],
    dtypes: Sequence[str],
    contexts: Sequence[int],
    page_sizes: Sequence[int] = (0,),
    kv_dtypes: Sequence[str] = (AUTO,),
) -> list[Case]:
    """Every combination; only attention has one case per context, page size and dtype of the cache."""
    return [
        cases.make(op, model, rows=row, context=context, dtype=dtype, page_size=page_size, kv_dtype=kv_dtype)
        for dtype in dtypes
        for row in rows
        for model in models
        for op in ops
        for context, page_size, kv_dtype in caches_of(op, contexts, page_sizes, kv_dtypes)
    ]


def caches_of(
    op: str, contexts: Sequence[int], page_sizes: Sequence[int], kv_dtypes: Sequence[str]
) -> list[tuple[int, int, str]]:
    """(context, page size, what it is stored in) of each of an op's cases."""
    return list(itertools.product(contexts, page_sizes, kv_dtypes)) if op == "attention" else [(contexts[0], 0, AUTO)]


def of_options(options: Options) -> list[Case]:
    """The cases of a sweep."""
    return all_cases(
        options.ops, options.models, options.rows, options.dtypes, options.contexts, options.page_sizes,
        options.kv_dtypes,
    )  # fmt: skip


def space_of(case: Case, options: Options) -> list[Any]:
    """The case's search space, as far as the options restrict it."""
    return [tile for tile in case.known.search_space(case.shape) if _allowed(tile, options)]


def check_restrictions(cases_: Sequence[Case], options: Options) -> None:
    """Raises where the options leave a case no tile."""
    for case in cases_:
        if options.restrictions and not space_of(case, options):
            asked = ", ".join(f"{field}={values}" for field, values in options.restrictions.items())
            raise UsageError(f"{asked}: no tile of {case.op}'s search space for {case.model} is like this")


def tiles_of(case: Case, options: Options, device: Device, limit: int, most: int = 0) -> list[Any]:
    """The tiles to try: the incumbents first, then the restricted search space, infeasible tiles among them.

    With a limit (not 0), the feasible ones only, and of those an even sample of that many, incumbents included; `most`
    (not 0) lets only the first so many of the feasible ones into that, and of attention an even sample.
    """
    first = case.incumbents(device)
    rest = [tile for tile in space_of(case, options) if tile not in first]
    if limit or most:
        rest = [tile for tile in rest if case.known.feasible(tile, case.shape, device)]
    if most:
        count = max(most - len(first), 0)
        rest = even_sample(rest, count) if case.op == "attention" else rest[:count]
    if limit:
        rest = even_sample(rest, limit - len(first))
    return first + rest


def timed_tiles(case: Case, options: Options, device: Device) -> list[Any]:
    """The tiles that a sweep on a GPU tries."""
    most = options.max_tiles_many_rows if case.rows > FEW_ROWS else 0
    return tiles_of(case, options, device, options.max_tiles, most)


def _allowed(tile: Any, options: Options) -> bool:
    fields = dataclasses.asdict(tile)
    return all(fields[name] in values for name, values in options.restrictions.items() if name in fields)


def even_sample(items: list, count: int) -> list:
    """`count` of the items, evenly spaced, or all where there are no more."""
    if count >= len(items):
        return items
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(max(count, 0))]
