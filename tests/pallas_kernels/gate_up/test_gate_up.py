"""gate_up."""

import hypothesis
import pytest
from hypothesis import strategies as st

from pallas_kernels.common.arithmetic import ACTIVATIONS
from pallas_kernels.common.stream_tiles import Tiles
from tests.pallas_kernels import inputs
from tests.pallas_kernels.compare import assert_right, assert_same_bits
from tests.pallas_kernels.strategies import SEEDS, dtypes, ragged, rows_for, stream_tiles


@hypothesis.given(st.data())
def test_ragged(data):
    tiles = data.draw(stream_tiles())
    call = inputs.gate_up(
        inputs.Values(data.draw(SEEDS)),
        rows=data.draw(rows_for(tiles)),
        width=data.draw(ragged),
        features=data.draw(ragged),
        dtype=data.draw(dtypes),
        bias=data.draw(st.booleans()),
        activation=data.draw(st.sampled_from(ACTIVATIONS)),
        norm_offset=data.draw(st.sampled_from((0.0, 1.0))),
    )
    assert_right(call, tiles)


@pytest.mark.parametrize("mma", [False, True])
def test_sizes_that_tiles_divide(mma):
    call = inputs.gate_up(inputs.Values(0), rows=5, width=64, features=32)
    assert_right(call, Tiles(block_n=16, block_k=32, mma=mma))


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


def test_a_row_does_not_depend_on_the_others():
    call = inputs.gate_up(inputs.Values(0), rows=3, width=100, features=40)
    tiles = Tiles(block_n=16, block_k=32, mma=True)  # rows are padded to 16, so both run one and the same program
    alone = call.replace(x=call.arrays["x"][:1])
    assert_same_bits(alone("interpret", tiles), call("interpret", tiles)[:1])
