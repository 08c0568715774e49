"""KVCache in 8 bits: what is stored for a number, and which caches are refused."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pallas_kernels as pk
from tests.pallas_kernels import inputs, oracle
from tests.pallas_kernels.inputs import Layout
from tests.pallas_kernels.lowering import lower
from tests.pallas_kernels.marks import slow
from tests.pallas_kernels.ragged import KV_DTYPES

MOST = {"int8": 127.0, "float8_e4m3fn": 448.0}


def stored_as(x, scale, dtype):
    """float32 numbers in units of a scale, by numpy and ml_dtypes, which round to nearest even."""
    units = np.clip(x.astype(np.float32) * (np.float32(1) / np.float32(scale)), -MOST[dtype], MOST[dtype])
    return np.rint(units).astype(np.int8) if dtype == "int8" else units.astype(ml_dtypes.float8_e4m3fn)


@settings(deadline=None, max_examples=30)
@given(
    values=st.lists(st.floats(-4000, 4000, width=32), min_size=1, max_size=8),
    scale=st.sampled_from((1.0, 0.5, 0.037, 3.0)),
    dtype=st.sampled_from(tuple(MOST)),
)
def test_write_rounds_to_nearest_even_and_saturates(values, scale, dtype):
    x = np.resize(np.float32(values), 8)
    scales = jnp.full(1, scale, jnp.float32)
    cache = pk.KVCache.zeros(1, 1, 4, 8, dtype, k_scale=scales, v_scale=2 * scales)
    row = jnp.asarray(x).reshape(1, 1, 8)
    written = cache.write(row, row, positions=jnp.full(1, 2, jnp.int32))
    for found, unit in ((written.k, scale), (written.v, 2 * scale)):
        np.testing.assert_array_equal(np.asarray(found[0, 0, 2]), stored_as(x, unit, dtype))
        assert not np.asarray(found[0, 0, [0, 1, 3]], np.float32).any()


@pytest.mark.parametrize("dtype", MOST)
def test_ties_the_largest_and_what_is_not_finite(dtype):
    x = jnp.asarray([0.5, 1.5, -2.5, 1e9, -1e9, np.inf, -np.inf, np.nan])
    cache = pk.KVCache.zeros(1, 1, 1, 8, dtype)
    k = np.asarray(cache.write(x.reshape(1, 1, 8), x.reshape(1, 1, 8), positions=jnp.zeros(1, jnp.int32)).k, np.float32)
    most, ties = MOST[dtype], [0, 2, -2] if dtype == "int8" else [0.5, 1.5, -2.5]
    nan = 0 if dtype == "int8" else np.nan
    np.testing.assert_array_equal(k[0, 0, 0], [*ties, most, -most, most, -most, nan])


def written_rows(call, cache):
    """Keys and values [rows, K, H] that a cache holds for the rows of a call of `qkv`."""
    table, at = np.asarray(call.arrays["page_table"]), np.asarray(call.arrays["positions"])
    page, slot = table[np.asarray(call.arrays["sequence"]), at // cache.page_size], at % cache.page_size
    return [np.asarray(x)[page, :, slot] for x in (cache.k, cache.v)]


@pytest.mark.parametrize("implementation", ["xla", "interpret"])
@pytest.mark.parametrize(
    "kv_dtypes", [slow(KV_DTYPES[1]), slow(KV_DTYPES[2]), slow(KV_DTYPES[3]), KV_DTYPES[4]], ids=str
)
def test_qkv_stores_the_nearest(implementation, kv_dtypes):
    """Within a half of the step between neighbours of the oracle's number, or at the largest."""
    call = inputs.qkv(
        inputs.Values(0), rows=7, width=40, heads=4, kv_heads=2, head_dim=24, layout=Layout(6, 4), bias=True,
        dtype="float32", kv_dtypes=kv_dtypes,
    )  # fmt: skip
    small = 0.4 * call.arrays["cache"].v_scale if kv_dtypes[1] else None  # so that some values are too large
    call = call.replace(cache=pk.KVCache(**(vars(call.arrays["cache"]) | dict(v_scale=small))))
    q, cache = call(implementation)
    exact_q, exact_k, exact_v = oracle.of(call)
    np.testing.assert_allclose(q, exact_q, rtol=1e-5, atol=1e-5)  # float32
    for found, exact, scale, dtype in zip(
        written_rows(call, cache), written_rows(call, pk.KVCache(k=exact_k, v=exact_v)),
        (cache.k_scale, cache.v_scale), kv_dtypes, strict=True,
    ):  # fmt: skip
        if dtype is None:
            np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
            continue
        units = exact / np.asarray(scale)[:, None]
        most = MOST[dtype]
        half_step = 0.5 if dtype == "int8" else np.maximum(2.0**-4 * np.abs(units), 2.0**-10)
        error = np.abs(found.astype(np.float64) - np.clip(units, -most, most))
        assert (error <= half_step * (1 + 1e-4)).all(), error.max()
    if kv_dtypes[1]:
        assert (np.abs(found.astype(np.float32)) == most).any()


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtypes", KV_DTYPES[1:], ids=str)
@pytest.mark.parametrize("dtype", pk.DTYPES)
@pytest.mark.parametrize("op", ["qkv", "attention"])
def test_it_lowers_for_a_gpu(op, dtype, kv_dtypes):
    for rows, tokens in ((1, None), (16, None), *(((4, 8),) if op == "attention" else ())):
        call = inputs.of_model(
            inputs.Shapes(), "llama-3.2-1b", op, rows=rows, tokens=tokens, dtype=dtype, kv_dtypes=kv_dtypes
        )
        assert "triton" in lower(call)


@pytest.mark.parametrize("op", ["qkv", "attention"])
def test_a_gpu_without_8_bit_floats_is_refused(op):
    shapes = {
        dtype: inputs.of_model(inputs.Shapes(), "llama-3.2-1b", op, rows=1, kv_dtypes=(None, dtype)) for dtype in MOST
    }
    assert "triton" in lower(shapes["int8"], key="a100")
    with pytest.raises(ValueError, match=r"cache\.v: expected int8 or the dtype of q on NVIDIA A100, which has no fp8"):
        lower(shapes["float8_e4m3fn"], key="a100")


def test_a_cost_counts_the_bytes_that_are_stored():
    calls = {
        kv: inputs.of_model(inputs.Shapes(), "llama-3.1-8b", "attention", rows=2, kv_dtypes=kv) for kv in KV_DTYPES
    }
    cost = {kv: pk.OPS["attention"].cost(**call.arrays, **call.options).bytes for kv, call in calls.items()}
    whole, half = cost[None], cost["int8", "int8"]
    assert whole - half == 2 * 2048 * 8 * 128 * 2  # a byte less of each of the keys and values of two rows
    assert cost["int8", None] - half == half - (2 * half - cost["int8", None])
    assert whole - cost[None, "float8_e4m3fn"] == (whole - half) / 2


ONES, HALF = jnp.ones(2), jnp.ones((1, 2, 4, 8), jnp.bfloat16)
BYTES, FP8 = jnp.ones((1, 2, 4, 8), jnp.int8), jnp.ones((1, 2, 4, 8), jnp.float8_e4m3fn)


@pytest.mark.parametrize(
    "arrays, message",
    [
        (dict(k=BYTES, v=HALF), "cache.k_scale: expected float32 [2] beside cache.k in int8, got None"),
        (dict(k=HALF, v=FP8), "cache.v_scale: expected float32 [2] beside cache.v in float8_e4m3fn, got None"),
        (dict(k=HALF, v=HALF, v_scale=ONES), "cache.v_scale: expected None beside cache.v in bfloat16"),
        (dict(k=BYTES, v=HALF, k_scale=jnp.ones(3)), "cache.k_scale: expected shape [2], one for each kv"),
        (dict(k=BYTES, v=HALF, k_scale=ONES.astype(jnp.bfloat16)), "cache.k_scale: expected dtype float32"),
        (dict(k=BYTES, v=HALF, k_scale=0 * ONES), "cache.k_scale: expected positive numbers, got 0.0"),
        (dict(k=BYTES, v=HALF, k_scale=jnp.nan * ONES), "cache.k_scale: expected positive numbers, got nan"),
        (dict(k=HALF.astype(jnp.float8_e5m2), v=HALF), "cache.k: expected dtype bfloat16, float16, float32, f"),
        (dict(k=HALF, v=BYTES.astype(jnp.uint8)), "cache.v: expected dtype"),
        (dict(k=HALF, v=HALF.astype(jnp.float32)), "cache.v: expected the dtype of cache.k"),
        (dict(k=BYTES, v=HALF.astype(jnp.float16), k_scale=ONES), "cache.v: expected the dtype of q"),
    ],
)  # fmt: skip
def test_wrong_caches(arrays, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        pk.attention(
            jnp.ones((1, 2, 8), jnp.bfloat16), pk.KVCache(**arrays), lengths=jnp.ones(1, jnp.int32),
            implementation="xla",
        )  # fmt: skip


def test_zeros():
    cache = pk.KVCache.zeros(3, 2, 4, 8, "bfloat16", v_dtype="int8")
    assert (cache.k.dtype, cache.v.dtype, cache.k_scale) == (jnp.bfloat16, jnp.int8, None)
    np.testing.assert_array_equal(cache.v_scale, np.ones(2))
    with pytest.raises(TypeError, match="v_dtype: expected bfloat16 or float16 or float32 or float8_e4m3fn or int8"):
        pk.KVCache.zeros(3, 2, 4, 8, "bfloat16", v_dtype="int4")
    with pytest.raises(ValueError, match=r"cache\.k_scale: expected None"):
        pk.KVCache.zeros(3, 2, 4, 8, "bfloat16", k_scale=ONES)


@pytest.mark.slow
def test_a_cache_is_a_pytree_with_its_scales():
    cache = pk.KVCache.zeros(1, 2, 4, 8, "int8")
    assert len(jax.tree.leaves(cache)) == 4
    row = jnp.ones((1, 2, 8))
    write = jax.jit(lambda cache: cache.write(row, row, positions=jnp.zeros(1, jnp.int32)), donate_argnums=0)
    assert int(write(cache).k[0, 0, 0].sum()) == 8
