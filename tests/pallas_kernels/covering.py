"""Few cases in which any two values of two parameters meet.

What goes wrong in a kernel is a branch taken for one value, or two that do not go together; the product of all values
compiles hundreds of kernels to find the same.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def _pairs(case: dict[str, Any]) -> set[tuple]:
    return set(itertools.combinations(sorted(case.items()), 2))


def all_pairs(**values: Sequence) -> list[dict[str, Any]]:
    """Cases, each a value of every parameter, in which any two values of two parameters meet; always the same ones."""
    places = {name: range(len(choices)) for name, choices in values.items()}
    one_of_each = itertools.combinations(places, 2)
    missing = {tuple(sorted({a: i, b: j}.items())) for a, b in one_of_each for i in places[a] for j in places[b]}
    seen = dict.fromkeys(((name, i) for name in places for i in places[name]), 0)
    cases = []
    while missing:
        case = dict(min(missing, key=lambda pair: (sum(seen[place] for place in pair), pair)))
        for name in sorted(places, key=lambda name: -len(places[name])):
            if name not in case:
                # The value that brings the most pairs that are missing; of equal ones the one seen least.
                new = {i: len(_pairs(case | {name: i}) & missing) for i in places[name]}
                case[name] = max(places[name], key=lambda i: (new[i], -seen[name, i]))
        missing -= _pairs(case)
        for place in case.items():
            seen[place] += 1
        cases.append({name: values[name][case[name]] for name in values})
    return cases


def covering(tiles: Sequence) -> list:
    """Those of `tiles` in which any two values of two fields meet that do in any of them, and the first and the last.

    Of tiles in the order of a search space the first is the smallest and the last the largest.
    """
    pairs = {tile: _pairs(dataclasses.asdict(tile)) for tile in tiles}
    found = [tiles[0], tiles[-1]]
    missing = set().union(*pairs.values()) - pairs[tiles[0]] - pairs[tiles[-1]]
    while missing:
        found.append(max(tiles, key=lambda tile: len(pairs[tile] & missing)))
        missing -= pairs[found[-1]]
    return found


def parameters(cases: Sequence[dict[str, Any]], quick: Sequence[int] = (0, 2)) -> list:
    """(seed, case) for `pytest.mark.parametrize`; all but those with a place in `quick` are slow."""
    slow = pytest.mark.slow
    return [pytest.param(i, case, id=f"case {i}", marks=() if i in quick else slow) for i, case in enumerate(cases)]
