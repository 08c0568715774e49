"""attention."""

import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels import DTYPES, AttentionTiles
from tests.pallas_kernels import covering, inputs
from tests.pallas_kernels.compare import assert_right, assert_same_bits
from tests.pallas_kernels.inputs import Layout
from tests.pallas_kernels.ragged import HEADS, KV_DTYPES, sequences_of

LAYOUTS = [
    Layout(53),  # contiguous
    Layout(6, 9),  # a page holds no whole block of keys
    Layout(24, 3),
    Layout(16, 5),
    Layout(32, 2),  # a page holds whole blocks
]
CASES = covering.all_pairs(
    rows=(1, 3, 16),
    heads=HEADS,
    head_dim=(8, 24, 80),
    layout=LAYOUTS,
    sequences=("one", "half", "each"),
    padding=(False, True),
    dtype=DTYPES,
    scale=(None, 0.3),
    soft_cap=(None, 2.0),
    window=(None, 1, 20),
    counters=(False, True),
    kv_dtypes=KV_DTYPES,
    block_s=(16, 32),
    splits=(1, 4),
)


@pytest.mark.parametrize("seed, case", covering.parameters(CASES, quick=(0,)))
def test_ragged(seed, case):
    options = dict(case)
    tiles = AttentionTiles(block_s=options.pop("block_s"), splits=options.pop("splits"))
    heads, kv_heads = options.pop("heads")
    call = inputs.attention(inputs.Values(seed), heads=heads, kv_heads=kv_heads, **options | sequences_of(options))
    result = assert_right(call, tiles)
    if call.arrays["counters"] is not None:
        assert not np.any(result[1])


@pytest.mark.slow
@pytest.mark.parametrize("head_dim, splits", [(96, 2), (128, 1), (128, 2), (256, 1)])
def test_large_heads(head_dim, splits):
    call = inputs.attention(
        inputs.Values(0), rows=2, heads=4, kv_heads=2, head_dim=head_dim, layout=Layout(16, 3), dtype="float32"
    )
    assert_right(call, AttentionTiles(block_s=16, splits=splits))


@pytest.mark.slow
def test_more_query_heads_than_one_product_takes():
    call = inputs.attention(inputs.Values(0), rows=1, heads=20, kv_heads=1, head_dim=16, layout=Layout(40))
    assert_right(call, AttentionTiles(block_s=16, splits=2))


@pytest.mark.slow
def test_more_splits_than_are_combined_at_once():
    call = inputs.attention(inputs.Values(0), rows=2, heads=4, kv_heads=2, head_dim=16, layout=Layout(600))
    assert_right(call, AttentionTiles(block_s=16, splits=32))


@pytest.mark.slow
def test_without_sequence_row_i_is_sequence_i():
    call = inputs.attention(inputs.Values(0), rows=3, heads=2, kv_heads=1, head_dim=16, layout=Layout(16, 2))
    order = np.argsort(call.arrays["sequence"])
    call = call.replace(sequence=jnp.arange(3, dtype=jnp.int32), lengths=call.arrays["lengths"][order])
    tiles = AttentionTiles(block_s=16, splits=2)
    assert_same_bits(call("interpret", tiles, sequence=None), call("interpret", tiles))


@pytest.mark.slow
@pytest.mark.parametrize("splits", [1, 4])
def test_a_row_does_not_depend_on_the_others(splits):
    call = inputs.attention(inputs.Values(3), rows=4, heads=4, kv_heads=2, head_dim=24, layout=Layout(12, 5))
    first = {name: call.arrays[name][:1] for name in ("q", "lengths", "sequence")}
    tiles = AttentionTiles(block_s=16, splits=splits)
    assert_same_bits(call("interpret", tiles, **first), call("interpret", tiles)[:1])


@pytest.mark.slow
def test_page_order_does_not_matter():
    """A paged cache gives the bits of a contiguous one of the same contents."""
    contiguous = inputs.attention(inputs.Values(0), rows=2, heads=4, kv_heads=2, head_dim=16, layout=Layout(64))
    order = np.random.default_rng(0).permutation(8)

    def pages(x):
        return jnp.moveaxis(x.reshape(2, 2, 4, 16, 16), 2, 1).reshape(8, 2, 16, 16)[np.argsort(order)]

    cache = contiguous.arrays["cache"]
    paged = contiguous.replace(
        cache=pk.KVCache(k=pages(cache.k), v=pages(cache.v)), page_table=jnp.asarray(order.reshape(2, 4), jnp.int32)
    )
    tiles = AttentionTiles(block_s=16, splits=2)
    assert_same_bits(paged("interpret", tiles), contiguous("interpret", tiles))


@pytest.mark.slow
def test_equal_calls_give_equal_bits():
    call = inputs.attention(
        inputs.Values(0), rows=2, heads=4, kv_heads=2, head_dim=16, layout=Layout(64), counters=True
    )
    tiles = AttentionTiles(block_s=16, splits=4)
    first = call("interpret", tiles)
    assert_same_bits(call("interpret", tiles, counters=first[1]), first)
