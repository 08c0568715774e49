"""qkv."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.common.launch import guarded
from pallas_kernels.common.stream_tiles import Tiles
from tests.pallas_kernels import covering, inputs
from tests.pallas_kernels.compare import assert_right, assert_same_bits
from tests.pallas_kernels.inputs import Layout
from tests.pallas_kernels.marks import slow
from tests.pallas_kernels.ragged import HEADS, STREAM, sequences_of, stream_tiles

CASES = covering.all_pairs(
    **STREAM,
    width=(45, 150),
    heads=HEADS,
    head_dim=(8, 24, 80),
    layout=(Layout(19), Layout(6, 4), Layout(16, 2)),
    sequences=("one", "half", "each"),
    padding=(False, True),
    rotary=(0.0, 0.5, 1.0),
    bias=(False, True),
    qk_norm=(False, True),
)


def assert_only_rows_written(call, result):
    """Slots that no row belongs to keep their bits."""
    arrays = call.arrays
    positions, sequence = np.asarray(arrays["positions"]), np.asarray(arrays["sequence"])
    size = arrays["cache"].page_size
    real = positions >= 0
    page = sequence[real]
    if arrays["page_table"] is not None:
        page = np.asarray(arrays["page_table"])[page, positions[real] // size]
    for before, after in zip(jax.tree.leaves(arrays["cache"]), jax.tree.leaves(result[1]), strict=True):
        expected = np.array(before)
        expected[page, :, positions[real] % size] = np.asarray(after)[page, :, positions[real] % size]
        assert_same_bits(after, expected)


@pytest.mark.parametrize("seed, case", covering.parameters(CASES, quick=(0,)))
def test_ragged(seed, case):
    head_dim = case["head_dim"]
    whole_head = 1 << (head_dim // 2 - 1).bit_length()
    tiles, options = stream_tiles(case, block_n=whole_head if case["qk_norm"] else 1)
    heads, kv_heads = options.pop("heads")
    options |= sequences_of(options) | dict(rotary_dim=int(options.pop("rotary") * head_dim))
    call = inputs.qkv(inputs.Values(seed), heads=heads, kv_heads=kv_heads, **options)
    assert_only_rows_written(call, assert_right(call, tiles))


@pytest.mark.parametrize(
    "options",
    [
        slow(dict(rows=21, rotary_dim=8, layout=Layout(6, 4), bias=True, padding=2, sequences=9)),
        slow(dict(rows=5, qk_norm=True, norm_offset=1.0, layout=Layout(19), dtype="float32")),
    ],
    ids=["partial rotation", "QK-norm"],
)
def test_a_split_reduction_axis(options):
    """The pairs of a head then come together in the second launch, whatever the first one's blocks."""
    call = inputs.qkv(inputs.Values(0), width=128, heads=6, kv_heads=2, head_dim=24, **options)
    assert_only_rows_written(call, assert_right(call, Tiles(block_n=16, block_k=32, mma=True, block_m=32, splits=2)))


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [96, 128, 256])
def test_large_heads(head_dim):
    call = inputs.qkv(inputs.Values(0), rows=2, width=72, heads=2, kv_heads=1, head_dim=head_dim, layout=Layout(8, 2))
    assert_right(call, Tiles(block_n=32, block_k=32, mma=True))


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [24, 80, 128])
def test_heuristic_tiles_for_qk_norm(head_dim):
    call = inputs.qkv(
        inputs.Values(0), rows=2, width=200, heads=3, kv_heads=1, head_dim=head_dim, layout=Layout(8), qk_norm=True
    )
    assert_right(call, None)


@pytest.mark.slow
def test_a_cache_of_another_dtype_rounds_what_is_stored():
    call = inputs.qkv(inputs.Values(0), rows=2, width=40, heads=2, kv_heads=1, head_dim=16, layout=Layout(8))
    cache = jax.tree.map(lambda x: x.astype(jnp.float32), call.arrays["cache"])
    call = call.replace(cache=cache)
    assert_only_rows_written(call, assert_right(call, Tiles(block_n=16, block_k=32, mma=True)))


@pytest.mark.slow
def test_rows_outside_the_cache_write_nothing():
    call = inputs.qkv(inputs.Values(0), rows=4, width=40, heads=2, kv_heads=1, head_dim=16, layout=Layout(8, 2))
    call = call.replace(positions=jnp.array([-1, 16, 17, 1000], jnp.int32))
    for implementation in ("interpret", "xla"):
        with guarded():
            _, cache = jax.jit(call.bind(implementation))(**call.arrays)
        assert_same_bits(cache, call.arrays["cache"])


@pytest.mark.slow
def test_a_nan_cache_is_not_read():
    call = inputs.qkv(inputs.Values(0), rows=2, width=40, heads=2, kv_heads=1, head_dim=16, layout=Layout(8))
    poisoned = call.replace(cache=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), call.arrays["cache"]))
    result = assert_right(poisoned, Tiles(block_n=16, block_k=32, mma=True))
    assert_only_rows_written(poisoned, result)


@pytest.mark.slow
def test_without_sequence_row_i_is_sequence_i():
    call = inputs.qkv(inputs.Values(0), rows=3, width=40, heads=2, kv_heads=1, head_dim=16, layout=Layout(8))
    call = call.replace(sequence=jnp.arange(3, dtype=jnp.int32))
    assert_same_bits(call("interpret", sequence=None), call("interpret"))


@pytest.mark.slow
def test_a_row_does_not_depend_on_the_others():
    call = inputs.qkv(inputs.Values(0), rows=3, width=100, heads=4, kv_heads=2, head_dim=24, layout=Layout(12))
    tiles = Tiles(block_n=16, block_k=32, mma=True)  # rows are padded to 16, so both run one and the same program
    first = {name: call.arrays[name][:1] for name in ("x", "positions", "sequence")}
    assert_same_bits(call("interpret", tiles, **first)[0], call("interpret", tiles)[0][:1])
