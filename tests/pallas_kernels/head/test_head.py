"""head and head_logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.common.launch import guarded
from pallas_kernels.common.stream_tiles import Tiles
from pallas_kernels.head.triton import ARGMAX_BLOCK
from tests.pallas_kernels import covering, inputs
from tests.pallas_kernels.compare import assert_right, assert_right_head, assert_same_bits
from tests.pallas_kernels.ragged import STREAM, stream_tiles

TILES = [Tiles(block_n=4, block_k=16), Tiles(block_n=32, block_k=16, mma=True)]
CASES = covering.all_pairs(
    **STREAM,
    function=(pk.head_logits, pk.head),
    width=(45, 150),
    vocabulary=(1, 21, 140),
    bias=(False, True),
    soft_cap=(None, 2.0),
)


@pytest.mark.parametrize("seed, case", covering.parameters(CASES))
def test_ragged(seed, case):
    tiles, options = stream_tiles(case)
    call = inputs.head(inputs.Values(seed), **options)
    if call.function is pk.head:
        assert_right_head(call, tiles)
    else:
        assert assert_right(call, tiles).dtype == jnp.float32


def head_of(logits, implementation, tiles):
    """`head` of two rows with exactly these logits: a weight of zeros and a bias."""
    logits = jnp.asarray(logits, jnp.float32)
    weight = pk.DenseWeight(values=jnp.zeros((len(logits), 8), jnp.float32), bias=logits)
    with guarded():
        return pk.head(jnp.ones((2, 8)), jnp.ones(8), weight, implementation=implementation, tiles=tiles)


@pytest.mark.slow
@pytest.mark.parametrize("tiles", TILES, ids=["vectors", "tensor cores"])
@pytest.mark.parametrize("implementation", ["interpret", "xla"])
def test_argmax_as_in_jax(implementation, tiles):
    size = 67
    base = np.linspace(-3.0, 1.0, size)
    cases = {
        "ties in one block": {1: 5.0, 2: 5.0},
        "ties in different blocks": {66: 5.0, 33: 5.0, 64: 5.0},
        "all equal": dict.fromkeys(range(size), 2.0),
        "zeros of both signs": dict.fromkeys(range(size), -0.0) | {40: 0.0},
        "one NaN": {50: np.nan},
        "several NaN": {50: np.nan, 7: np.nan, 66: np.nan},
        "all NaN": dict.fromkeys(range(size), np.nan),
        "minus infinity but for one": dict.fromkeys(range(size), -np.inf) | {61: -1e30},
        "minus infinity": dict.fromkeys(range(size), -np.inf),
        "plus infinity": {9: np.inf, 60: np.inf},
        "plus infinity before NaN": {9: np.inf, 11: np.nan, 60: np.inf},
    }
    for name, changes in cases.items():
        logits = base.copy()
        logits[list(changes)] = list(changes.values())
        token, value = head_of(logits, implementation, tiles)
        expected = int(jnp.argmax(jnp.asarray(logits)))
        assert token.tolist() == [expected, expected], name
        np.testing.assert_array_equal(value, np.full(2, logits[expected], np.float32), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("tiles", TILES, ids=["vectors", "tensor cores"])
def test_a_vocabulary_smaller_than_the_tile(tiles):
    token, value = head_of([-2.0, -1.0, -3.0], "interpret", tiles)
    assert (token.tolist(), value.tolist()) == ([1, 1], [-1.0, -1.0])


@pytest.mark.slow
def test_more_programs_than_the_argmax_reads_at_once():
    """A program for each token; the largest logits are in the first block that is read, and last of all."""
    programs = ARGMAX_BLOCK + 100
    logits = np.random.default_rng(0).normal(size=(2, programs)).astype(np.float32)
    logits[0, [5, ARGMAX_BLOCK + 3]] = logits[1, -1] = 9.0
    # Each row has its own logits: it is a row of the identity, and they are the weight.
    weight = pk.DenseWeight(values=jnp.asarray(logits.T) / np.sqrt(2))
    x = jnp.eye(2)
    with guarded():
        token, value = pk.head(
            x, jnp.ones(2), weight, eps=1e-12, implementation="interpret", tiles=Tiles(block_n=1, block_k=16)
        )
    assert token.tolist() == [5, programs - 1]
    np.testing.assert_allclose(value, [9.0, 9.0], rtol=1e-6)  # a few float32 roundings


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows, tiles, dtype",
    [
        (16, Tiles(block_n=16, block_k=16, mma=True), "float32"),
        (16, Tiles(block_n=32, block_k=16, mma=True), "float16"),
        (3, Tiles(block_n=4, block_k=16, num_stages=3), "bfloat16"),
    ],
    ids=["float32", "float16", "bfloat16 on vectors"],
)
def test_the_tokens_are_those_of_the_logits(rows, tiles, dtype):
    """Of the kernels' own logits, whatever the dtype: each row chooses for itself."""
    options = dict(rows=rows, width=40, vocabulary=100, dtype=dtype)
    call = inputs.head(inputs.Values(0), pk.head, **options)
    logits = inputs.head(inputs.Values(0), pk.head_logits, **options)("interpret", tiles)
    with guarded():
        token, value = call("interpret", tiles)
    assert_same_bits(token, jnp.argmax(logits, axis=1).astype(jnp.int32))
    # The kernels differ in what follows the sums, which the CPU compiler may fuse with them and so round otherwise.
    np.testing.assert_allclose(value, logits.max(axis=1), rtol=1e-5, atol=1e-5)
    assert len(set(token.tolist())) > 1


@pytest.mark.slow
def test_a_row_does_not_depend_on_the_others():
    call = inputs.head(inputs.Values(0), rows=3, width=100, vocabulary=70)
    tiles = Tiles(block_n=16, block_k=32, mma=True)  # rows are padded to 16, so both run one and the same program
    alone = call.replace(x=call.arrays["x"][:1])
    assert_same_bits(alone("interpret", tiles), call("interpret", tiles)[:1])


@pytest.mark.slow
def test_a_tied_embedding_table_is_taken_as_it_is():
    table = jax.random.normal(jax.random.key(1), (50, 24))
    x, norm = jax.random.normal(jax.random.key(2), (2, 24)), jnp.ones(24)
    shared = pk.head_logits(x, norm, pk.DenseWeight(values=table), implementation="interpret")
    packed = pk.head_logits(x, norm, pk.pack_linear(table.T), implementation="interpret")
    assert_same_bits(shared, packed)
