"""gate_up."""

import pytest

from pallas_kernels.common.arithmetic import ACTIVATIONS
from pallas_kernels.common.stream_tiles import Tiles
from tests.pallas_kernels import covering, inputs
from tests.pallas_kernels.compare import assert_right, assert_same_bits
from tests.pallas_kernels.ragged import STREAM, stream_tiles

CASES = covering.all_pairs(**STREAM, width=(45, 150), features=(21, 67), bias=(False, True), activation=ACTIVATIONS)


@pytest.mark.parametrize("seed, case", covering.parameters(CASES))
def test_ragged(seed, case):
    tiles, options = stream_tiles(case)
    assert_right(inputs.gate_up(inputs.Values(seed), **options), tiles)


@pytest.mark.slow
@pytest.mark.parametrize("mma", [False, True])
def test_sizes_that_tiles_divide(mma):
    call = inputs.gate_up(inputs.Values(0), rows=5, width=64, features=32)
    assert_right(call, Tiles(block_n=16, block_k=32, mma=mma))


@pytest.mark.slow
@pytest.mark.parametrize("mma", [False, True])
def test_float16_activations_that_overflow_before_they_are_normed(mma):
    call = inputs.gate_up(inputs.Values(0), rows=2, width=100, features=24, dtype="float16")
    x = call.arrays["x"].astype("float32")
    large = call.replace(x=(x * (65000 / abs(x).max())).astype("float16"), norm=1.5 + abs(call.arrays["norm"]))
    assert_right(large, Tiles(block_n=16, block_k=32, mma=mma))


def test_eps_counts_where_x_is_small():
    call = inputs.gate_up(inputs.Values(0), rows=1, width=40, features=20, dtype="float32")
    call = call.replace(x=call.arrays["x"] * 1e-4).set(eps=1e-3)
    assert_right(call, Tiles(block_n=4, block_k=16))


@pytest.mark.slow
def test_a_row_does_not_depend_on_the_others():
    call = inputs.gate_up(inputs.Values(0), rows=3, width=100, features=40)
    tiles = Tiles(block_n=16, block_k=32, mma=True)  # rows are padded to 16, so both run one and the same program
    alone = call.replace(x=call.arrays["x"][:1])
    assert_same_bits(alone("interpret", tiles), call("interpret", tiles)[:1])
