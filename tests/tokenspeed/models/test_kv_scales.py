"""Scales of a KV cache in 8 bits, what a cache in them loses, and the names of what keys and values are stored in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KVCache
from tests.pallas_kernels.lowering import for_gpu
from tokenspeed import LLM
from tokenspeed.models import kv_dtypes
from tokenspeed.models.kv_dtypes import KVDtypes, parse
from tokenspeed.models.kv_scales import MARGIN, KVScales, largest_of, scales_for

TEXT = "Once upon a time, there was a young boy named Leo. He lived in a white house on a hill with his cat."


@pytest.mark.parametrize(
    "said, k, v",
    [
        ("auto", "bfloat16", "bfloat16"),
        ("fp8", "float8_e4m3fn", "float8_e4m3fn"),
        ("int8", "int8", "int8"),
        ("auto/fp8", "bfloat16", "float8_e4m3fn"),
        ("int8/auto", "int8", "bfloat16"),
    ],
)
def test_what_an_option_says(said, k, v):
    found = parse("kv_dtype", said, "bfloat16")
    assert (found.k, found.v) == (k, v)
    assert found.itemsizes == tuple(2 if name == "bfloat16" else 1 for name in (k, v))


@pytest.mark.parametrize("said", ["", "fp16", "int4", "auto/", "int8/int8/int8", "auto, fp8", "auto,fp8", None, 8])
def test_what_it_may_not_say(said):
    with pytest.raises(ValueError, match="kv_dtype: expected auto, fp8 or int8, or two of them for keys/values, got"):
        kv_dtypes.check("kv_dtype", said)


def test_a_gpu_without_8_bit_floats_is_refused():
    fp8, int8 = (parse("kv_dtype", f"auto/{name}", "bfloat16") for name in ("fp8", "int8"))
    with for_gpu("a100"):
        kv_dtypes.check_device("kv_dtype", int8, "triton")
        with pytest.raises(ValueError, match="kv_dtype: expected auto or int8 on NVIDIA A100, which has no fp8"):
            kv_dtypes.check_device("kv_dtype", fp8, "triton")
    with for_gpu("h100"):
        kv_dtypes.check_device("kv_dtype", fp8, "triton")


@functools.cache
def tiny():
    return LLM.from_pretrained("tiny", implementation="xla")


@functools.cache
def tokens():
    tokenizer = tiny().tokenizer
    assert tokenizer is not None
    return jnp.asarray([tokenizer.encode(TEXT)], jnp.int32)


def through(kv: KVDtypes, scales: KVScales):
    """Log-probabilities [1, T, V] of a text through a cache, and the cache of the last layer."""
    model, (_, length) = tiny().model, tokens().shape
    c = model.config
    caches = [
        KVCache.zeros(1, c.num_kv_heads, length, c.head_dim, kv.k, v_dtype=kv.v, **scales.of_layer(i))
        for i in range(c.num_layers)
    ]
    positions = jnp.arange(length, dtype=jnp.int32)[None]
    x, caches = jax.jit(functools.partial(model.prefill, capacity=length))(
        caches, tokens(), positions, model.rope_tables(length)
    )
    return np.asarray(jax.nn.log_softmax(model.logits(x))), caches[-1]


@functools.cache
def exact():
    return through(KVDtypes.of(tiny().model.dtype), KVScales())


@pytest.mark.slow
@pytest.mark.parametrize("said, most", [("int8", 1e-3), ("fp8", 1e-2), ("auto/int8", 1e-3), ("fp8/auto", 1e-2)])
def test_what_a_cache_in_8_bits_loses(said, most):
    """The KL divergence of the next token's distribution, on average; ten times that of longer texts."""
    model = tiny().model
    kv = parse("kv_dtype", said, model.dtype)
    found, cache = through(kv, scales_for(model, kv))
    expected, full = exact()
    assert 0 < float((np.exp(expected) * (expected - found)).sum(axis=-1).mean()) < most
    for format, stored, scale, whole in zip(
        kv.formats, (cache.k, cache.v), (cache.k_scale, cache.v_scale), (full.k, full.v), strict=True
    ):
        if format == "int8":
            assert 64 < np.abs(np.asarray(stored, np.int32)).max() < 127, "the scale leaves a margin, not much"
            assert scale is not None and (np.abs(whole).max(axis=(0, 2, 3)) < 127 * scale).all()


def test_scales_of_int8_are_found_by_head_and_the_same_each_time():
    model = tiny().model
    kv = parse("kv_dtype", "int8/fp8", model.dtype)
    first, second = scales_for(model, kv), scales_for(model, kv)
    largest = largest_of(model)
    np.testing.assert_array_equal(first.k, second.k)
    np.testing.assert_allclose(first.k, MARGIN / 127 * largest.k, rtol=1e-6)
    np.testing.assert_array_equal(first.v, np.ones_like(largest.v))
    assert len(np.unique(first.k)) == first.k.size == model.config.num_layers * model.config.num_kv_heads
    assert scales_for(model, KVDtypes.of(model.dtype)) == KVScales()


def test_a_model_that_is_not_finite_has_none():
    model = jax.tree.map(lambda x: x, tiny().model)
    model.embedding[...] = jnp.full_like(model.embedding[...], jnp.nan)
    with pytest.raises(FloatingPointError, match="keys and values are not finite"):
        scales_for(model, parse("kv_dtype", "int8", model.dtype))
