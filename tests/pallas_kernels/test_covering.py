"""What other tests take their cases from does cover what it says."""

import dataclasses
import itertools

import pytest

from pallas_kernels import Tiles
from tests.pallas_kernels.covering import all_pairs, covering


@pytest.mark.parametrize(
    "values",
    [dict(a=(1, 2), b="xyz"), dict(a=(1, 2, 3), b="xyz", c=(None, [])), {name: range(3) for name in "abcdefgh"}],
    ids=len,
)
def test_any_two_values_of_two_parameters_meet(values):
    cases = all_pairs(**values)
    for a, b in itertools.combinations(values, 2):
        for x, y in itertools.product(values[a], values[b]):
            assert any(case[a] == x and case[b] == y for case in cases), (a, x, b, y)
    assert all(case.keys() == values.keys() for case in cases)
    assert cases == all_pairs(**values), "the same ones every time"


def test_fewer_cases_than_the_product():
    assert len(all_pairs(**{name: range(3) for name in "abcdefgh"})) < 30


def test_tiles_that_cover_a_space():
    """With what a space leaves out: of its pairs, all that are there, and its ends."""
    space = [
        Tiles(block_n=n, block_k=k, num_warps=warps, num_stages=stages)
        for n, k, warps, stages in itertools.product((1, 2, 4), (16, 32, 64), (2, 4), (1, 3))
        if n * k < 256
    ]
    found = covering(space)

    def pairs(tiles):
        return {pair for tile in tiles for pair in itertools.combinations(dataclasses.asdict(tile).items(), 2)}

    assert pairs(found) == pairs(space)
    assert {space[0], space[-1]} <= set(found) and len(found) == len(set(found)) < len(space) / 2
