"""out and down."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.common.stream_tiles import Tiles
from tests.pallas_kernels import covering, inputs
from tests.pallas_kernels.compare import assert_right, assert_same_bits
from tests.pallas_kernels.marks import slow
from tests.pallas_kernels.ragged import STREAM, stream_tiles

CASES = covering.all_pairs(
    **STREAM,
    function=(pk.out, pk.down),
    inputs=(45, 150),
    outputs=(21, 67),
    bias=(False, True),
    residual=(False, True),
    out_dtype=(None, "float32"),
    norm=(False, True),
)


@pytest.mark.parametrize("seed, case", covering.parameters(CASES))
def test_ragged(seed, case):
    tiles, options = stream_tiles(case)
    assert_right(inputs.projection(inputs.Values(seed), **options), tiles)


@pytest.mark.slow
@pytest.mark.parametrize("mma", [False, True])
def test_sizes_that_tiles_divide(mma):
    call = inputs.projection(inputs.Values(0), rows=16, outputs=32, inputs=64)
    assert_right(call, Tiles(block_n=16, block_k=32, mma=mma))


SPLIT = Tiles(block_n=16, block_k=32, mma=True, block_m=32, splits=4)


@pytest.mark.parametrize(
    "tiles, options",
    [
        slow(SPLIT, dict(rows=40, outputs=37, norm=True)),
        slow(SPLIT, dict(rows=5, outputs=37, bias=True, dtype="float32")),
        slow(dataclasses.replace(SPLIT, swap_ab=True, splits=2), dict(rows=33, outputs=1100, norm=True, bias=True)),
        slow(dataclasses.replace(SPLIT, block_m=16), dict(rows=3, outputs=64, residual=False, out_dtype="float32")),
    ],
    ids=["two blocks of rows", "bias", "columns of several programs", "no residual"],
)
def test_a_split_reduction_axis(tiles, options):
    assert_right(inputs.projection(inputs.Values(0), inputs=256, **options), tiles)


def test_out_takes_heads():
    call = inputs.projection(inputs.Values(0), pk.out, rows=2, outputs=24, inputs=60)
    heads = call.replace(x=call.arrays["x"].reshape(2, 5, 12))
    assert_same_bits(heads("interpret"), call("interpret"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "tiles",
    [
        Tiles(block_n=16, block_k=32, mma=True),
        Tiles(block_n=4, block_k=32),
        SPLIT,
        Tiles(block_n=16, block_k=32, mma=True, swap_ab=True),
    ],
    ids=str,
)
def test_a_row_does_not_depend_on_the_others(tiles):
    call = inputs.projection(inputs.Values(0), rows=3, outputs=40, inputs=128)
    alone = call.replace(x=call.arrays["x"][:1], residual=call.arrays["residual"][:1])
    assert_same_bits(alone("interpret", tiles), call("interpret", tiles)[:1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("tiles", [Tiles(block_n=16, block_k=32, mma=True), Tiles(block_n=4, block_k=32)], ids=str)
@pytest.mark.parametrize("implementation", ["interpret", "xla"])
def test_the_float32_sum_is_not_rounded(implementation, tiles, dtype):
    call = inputs.projection(inputs.Values(0), rows=3, outputs=40, inputs=100, dtype=dtype, out_dtype="float32")
    wide, narrow = call(implementation, tiles), call.set(out_dtype=None)(implementation, tiles)
    assert wide.dtype == jnp.float32 and narrow.dtype == dtype
    assert_same_bits(narrow, wide.astype(dtype))
    exact = call.replace(x=widened(call.arrays["x"]), weight=widened(call.arrays["weight"]))("xla")
    # products of 16-bit numbers are exact in float32, so only the order of the sums differs
    np.testing.assert_allclose(wide, exact, rtol=0, atol=1e-5)


def widened(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
