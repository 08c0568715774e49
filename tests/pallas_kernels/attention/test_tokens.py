"""attention, of several tokens of each sequence at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl

import pallas_kernels as pk
from pallas_kernels import AttentionTiles
from pallas_kernels.common.devices import DEVICES
from tests.pallas_kernels import inputs
from tests.pallas_kernels.compare import assert_right, assert_same_bits
from tests.pallas_kernels.inputs import Layout
from tests.pallas_kernels.ragged import KV_DTYPES

GROUPS = ((3, 3), (6, 2), (4, 1), (8, 1))
"""(heads, kv_heads): 1, 3, 4 and 8 query heads a kv head."""
LAYOUTS = (Layout(53), Layout(6, 9), Layout(16, 5), Layout(24, 3), Layout(32, 2))
"""Contiguous; of pages smaller than a block of keys, of one block, across blocks, and of two."""
TILES = AttentionTiles(block_s=16, splits=2, block_t=4)


def call_of(seed=0, **options):
    given = dict(rows=2, heads=6, kv_heads=2, head_dim=24, layout=Layout(24, 3), tokens=5, dtype="float32")
    return inputs.attention(inputs.Values(seed), **(given | options))


def in_any_order(seed, rows, tokens, layout):
    """Lengths that follow no order, some of them 0 and one all of the cache; between them windows leave gaps."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, layout.capacity + 1, (rows, tokens), np.int32)
    lengths[random.random(lengths.shape) < 0.2] = 0
    lengths[0, random.integers(tokens)] = layout.capacity
    return lengths


@st.composite
def cases(draw):
    """A call over keys that are NaN wherever no token looks, and its tiles."""
    heads, kv_heads = draw(st.sampled_from(GROUPS))
    rows, tokens, layout = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.sampled_from(LAYOUTS))
    seed = draw(st.integers(0, 99))
    call = call_of(
        seed, rows=rows, tokens=tokens, layout=layout, heads=heads, kv_heads=kv_heads,
        window=draw(st.sampled_from((None, 1, 7, 20))),
        soft_cap=draw(st.sampled_from((None, 2.0))),
        counters=draw(st.booleans()),
        dtype=draw(st.sampled_from(("float32", "bfloat16"))),
        kv_dtypes=draw(st.sampled_from(KV_DTYPES)),
        lengths=in_any_order(seed, rows, tokens, layout) if draw(st.booleans()) else None,
    )  # fmt: skip
    block_s, splits, block_t = (draw(st.sampled_from(x)) for x in ((16, 32), (1, 2, 8), (1, 2, 4, 16)))
    return call, AttentionTiles(block_s=block_s, splits=splits, block_t=block_t)


def check(case):
    call, tiles = case
    result = assert_right(call, tiles)
    if call.arrays["counters"] is not None:
        assert not np.any(result[1])


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(cases())
def test_kernel_and_reference_are_right(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("splits", [2, 1, 8])
@pytest.mark.parametrize("window", [None, 7])
def test_tokens_of_any_length(window, splits):
    lengths = in_any_order(1, 2, 5, Layout(24, 3))
    check(
        (call_of(window=window, lengths=lengths, counters=True), AttentionTiles(block_s=16, splits=splits, block_t=4))
    )


@pytest.mark.slow
@pytest.mark.parametrize("splits", [1, 2, 8])
def test_one_token_is_a_row(splits):
    call = call_of(tokens=1)
    rows = call.replace(q=call.arrays["q"][:, 0], lengths=call.arrays["lengths"][:, 0])
    tiles = AttentionTiles(block_s=16, splits=splits)
    assert_same_bits(call("interpret", tiles)[:, 0], rows("interpret", tiles))


def as_rows(call):
    """The same tokens, each as a row of its sequence."""
    q, lengths, sequence = (call.arrays[name] for name in ("q", "lengths", "sequence"))
    return call.replace(
        q=q.reshape(-1, *q.shape[2:]), lengths=lengths.reshape(-1), sequence=jnp.repeat(sequence, q.shape[1])
    )


@pytest.mark.slow
def test_blocks_of_one_token_are_rows():
    call, tiles = call_of(), AttentionTiles(block_s=16, splits=2)
    assert_same_bits(call("interpret", tiles).reshape(10, 6, 24), as_rows(call)("interpret", tiles))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["interpret", "xla"])
def test_a_token_does_not_depend_on_the_others(implementation):
    call = call_of()
    q = call.arrays["q"]
    others = jnp.arange(5) != 2
    changed = call.replace(q=jnp.where(others[None, :, None, None], 3.0 - q, q))
    tiles = TILES if implementation == "interpret" else None
    before, after = (np.asarray(c(implementation, tiles)) for c in (call, changed))
    assert_same_bits(before[:, 2], after[:, 2])
    assert (before != after).any(axis=(2, 3))[:, np.asarray(others)].all()


def in_order(call):
    """The call with row i of sequence i."""
    sequence, table = (call.arrays[name] for name in ("sequence", "page_table"))
    return call.replace(sequence=jnp.arange(len(sequence), dtype=jnp.int32), page_table=table[sequence])


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False], ids=["sequence", "no sequence"])
def test_more_tokens_than_one_launch_takes(given):
    """Right, and bit for bit what calls of a few rows give."""
    call = in_order(call_of(rows=60, layout=Layout(8, 3), counters=True))
    assert_right(call, TILES)
    whole, counters = call("interpret", TILES, **({} if given else dict(sequence=None)))
    assert counters.shape == (300, 2) and not counters.any()
    for rows in (slice(0, 2), slice(58, 60)):
        few = {name: call.arrays[name][rows] for name in ("q", "lengths", "sequence")}
        assert_same_bits(call("interpret", TILES, **few, counters=None), whole[rows])


FAULTS = {
    "a length beyond the cache": ("lengths", (1, 2), 73, [(1, 2)]),
    "no page for the longest": ("page_table", (1, 2), -1, [(1, 4)]),
    "no such page for the longest": ("page_table", (1, 2), 99, [(1, 4)]),
    "no such sequence": ("sequence", (1,), 5, [(1, 0), (1, 1), (1, 2), (1, 4)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("splits", [1, 2, 8, None])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_that_of_the_tokens_that_attend_to_it(name, splits):
    """Of the kernel, and of the reference, which knows no splits."""
    implementation = "xla" if splits is None else "interpret"
    argument, at, value, expected = FAULTS[name]
    lengths = np.array([[20, 21, 22, 23, 24], [40, 41, 42, 0, 60]], np.int32)
    right = in_order(call_of(lengths=lengths))
    wrong = right.replace(**{argument: right.arrays[argument].at[at].set(value)})
    tiles = None if splits is None else AttentionTiles(block_s=16, splits=splits, block_t=8)
    found, expected_result = (np.asarray(c.jitted(implementation, tiles)(**c.arrays)) for c in (wrong, right))
    faulty = np.zeros((2, 5), bool)
    faulty[tuple(zip(*expected))] = True
    np.testing.assert_array_equal(np.isnan(found).any(axis=(2, 3)), faulty)
    np.testing.assert_array_equal(np.isnan(found).all(axis=(2, 3)), faulty)
    # A fault may leave the others in blocks of other keys: float32 sums in another order.
    np.testing.assert_allclose(found[~faulty], expected_result[~faulty], rtol=1e-5, atol=1e-5)
    assert not found[1, 3].any()


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["interpret", "xla"])
@pytest.mark.parametrize("window", [None, 7])
def test_gradients_are_those_of_rows(window, implementation):
    call = call_of(window=window, lengths=in_any_order(2, 2, 5, Layout(24, 3)))

    def gradients(call, implementation, tiles=None):
        def loss(q, cache):
            return jnp.sum(jnp.sin(call(implementation, tiles, q=q, cache=cache)))

        return jax.grad(loss, argnums=(0, 1))(call.arrays["q"], call.arrays["cache"])

    q, cache = gradients(call, implementation, TILES)
    rows_q, rows_cache = gradients(as_rows(call), "xla")
    assert np.any(q) and np.any(cache.k) and np.any(cache.v)
    for got, expected in ((q.reshape(rows_q.shape), rows_q), (cache.k, rows_cache.k), (cache.v, rows_cache.v)):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)  # float32 sums in another order


WRONG = {
    "lengths of rows": (dict(lengths=jnp.ones(2, jnp.int32)), r"lengths: expected shape \[2, 5\], got \[2\]"),
    "a length beyond the cache": (
        dict(lengths=jnp.full((2, 5), 73, jnp.int32)),
        r"lengths: expected values in \[0, 73",
    ),
    "a negative length": (dict(lengths=jnp.full((2, 5), -1, jnp.int32)), "lengths: expected values"),
    "no page": (dict(page_table=jnp.full((2, 3), -1, jnp.int32)), "page_table: expected a page at"),
    "sequence of tokens": (dict(sequence=jnp.zeros((2, 5), jnp.int32)), r"sequence: expected shape \[2\]"),
    "counters of rows": (dict(counters=jnp.zeros((2, 2), jnp.int32)), r"counters: expected shape \[10, 2\]"),
    "no tokens": (dict(q=jnp.zeros((2, 0, 6, 24))), r"q: expected shape \[B, T, N, H\]"),
    "five axes": (dict(q=jnp.zeros((1, 2, 5, 6, 24))), r"q: expected shape \[B, N, H\] or \[B, T, N, H\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    changes, match = WRONG[name]
    with pytest.raises(ValueError, match=f"^{match}") as error:
        call_of()("xla", **changes)
    assert "\n" not in str(error.value)


def test_wrong_block_of_tokens():
    with pytest.raises(ValueError, match=r"^tiles: block_t: expected a power of two, got 3"):
        call_of()("interpret", AttentionTiles(block_s=16, splits=1, block_t=3))


def test_keys_cost_once_for_all_tokens_of_a_sequence():
    call = call_of(rows=1, lengths=np.array([[40, 12, 0, 41, 12]], np.int32))
    position = 2 * 2 * 24 * 4  # key and value, 2 kv heads, 24 float32 each
    queries = 2 * call.arrays["q"].nbytes
    products = 4 * 6 * 24
    for window, read, attended in ((None, 41, 105), (20, 33, 64), (1, 3, 4)):
        cost = pk.OPS["attention"].cost(**call.arrays, window=window)
        assert cost.bytes == position * read + queries, window
        assert cost.operations == products * attended, window


@pytest.mark.parametrize("key", DEVICES)
@pytest.mark.parametrize("tokens", [2, 5, 16, 128])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.2-1b"])
def test_tiles_of_tokens(model, tokens, key):
    op, device = pk.OPS["attention"], DEVICES[key]
    for dtype in ("bfloat16", "float32"):
        shape = inputs.of_model(inputs.Shapes(), model, "attention", rows=2, tokens=tokens, dtype=dtype).shape
        default = op.default_tiles(shape, device)
        rows = 64 if dtype == "bfloat16" else 16
        assert op.feasible(default, shape, device), dtype
        assert 4 * default.block_t == rows or default.block_t == pl.next_power_of_2(tokens)
        tiles = [tiles for tiles in op.search_space(shape) if op.feasible(tiles, shape, device)]
        assert 0 < len(tiles) <= 60
        assert len({tile.block_t for tile in tiles}) == 2
