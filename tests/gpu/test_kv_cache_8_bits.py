"""Compiled kernels on keys and values in 8 bits against float64, in guarded buffers; and a decode step over them.

The RMS error over draws is at most 1.5 times that of XLA in the same dtype on the numbers that the cache stands for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.common.launch import guarded
from tests.gpu.test_accuracy import TENSOR_CORE_FLOOR
from tests.pallas_kernels import inputs, oracle
from tests.pallas_kernels.inputs import Layout
from tests.pallas_kernels.ragged import KV_DTYPES
from tokenspeed.engine import decode
from tokenspeed.models.config import LayerConfig, ModelConfig, Rope
from tokenspeed.weights.random import random_model

EIGHT_BITS = KV_DTYPES[1:]
FORMS = {
    "a block each": (dict(layout=Layout(256)), pk.AttentionTiles(block_s=64, splits=4, num_stages=1)),
    "a loop": (dict(layout=Layout(512)), pk.AttentionTiles(block_s=32, splits=2, num_stages=3)),
    "without splits": (dict(layout=Layout(300)), pk.AttentionTiles(block_s=64, splits=1, num_stages=2)),
    "pages": (dict(layout=Layout(64, 8)), pk.AttentionTiles(block_s=64, splits=2, num_stages=3)),
    "pages of less than a block": (dict(layout=Layout(24, 11)), pk.AttentionTiles(block_s=32, splits=4, num_stages=2)),
    "tokens": (dict(layout=Layout(64, 8), tokens=5), pk.AttentionTiles(block_s=64, splits=2, block_t=8)),
    "warp groups": (dict(layout=Layout(64, 8), tokens=16), pk.AttentionTiles(block_s=64, splits=2, block_t=16)),
    "a window": (dict(layout=Layout(64, 8), window=70, soft_cap=20.0), pk.AttentionTiles(block_s=32, splits=2)),
    "the heuristic": (dict(layout=Layout(64, 8)), None),
}


def in_float32(call):
    """The call on the numbers that its cache stands for, all in float32."""
    cache = call.arrays["cache"]
    k, v = (
        stored.astype(jnp.float32) * (1 if scale is None else scale[:, None, None])
        for stored, scale in ((cache.k, cache.k_scale), (cache.v, cache.v_scale))
    )
    return call.replace(q=call.arrays["q"].astype(jnp.float32), cache=pk.KVCache(k=k, v=v))


@pytest.mark.parametrize("kv_dtypes", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head_dim", [128, 80])
def test_attention(form, kv_dtypes, head_dim, implementation, draws):
    """Slots that no row attends to hold NaN, and in int8 the largest number."""
    options, tiles = FORMS[form]
    for dtype in ("bfloat16", "float16", "float32") if head_dim == 128 else ("bfloat16",):
        ours, theirs, scale = [], [], []
        for seed in range(draws):
            call = inputs.attention(
                inputs.Values(seed), rows=5, heads=8, kv_heads=2, head_dim=head_dim, dtype=dtype, kv_dtypes=kv_dtypes,
                sequences=3 if "tokens" not in options else None, **options,
            )  # fmt: skip
            (truth,) = oracle.of(call)
            with guarded():
                found, again = (call(implementation, tiles) for _ in range(2))
            np.testing.assert_array_equal(found, again)
            plain = in_float32(call)
            cache = plain.arrays["cache"]
            rounded = pk.KVCache(k=cache.k.astype(dtype), v=cache.v.astype(dtype))
            beside = plain.replace(q=call.arrays["q"], cache=rounded)("xla")
            for errors, one in ((ours, found), (theirs, beside)):
                errors.append(float(np.mean((np.asarray(one, np.float64) - truth) ** 2)))
            scale.append(float(np.mean(truth**2)))
        rms, beside, size = (np.sqrt(np.mean(x)) for x in (ours, theirs, scale))
        assert rms <= max(1.5 * beside, TENSOR_CORE_FLOOR[dtype] * size), f"{dtype}: {rms}, XLA's {beside} of {size}"


WRITERS = {
    "vectors": (2, pk.Tiles(block_n=32, block_k=32)),
    "tensor cores": (13, pk.Tiles(block_n=32, block_k=32, num_warps=2, num_stages=4, mma=True)),
    "two launches": (40, pk.Tiles(block_n=16, block_k=32, mma=True, block_m=32, splits=2)),
}


@pytest.mark.parametrize("kv_dtypes", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("dtype", pk.DTYPES)
def test_qkv_writes_the_nearest(form, kv_dtypes, dtype, implementation):
    """What is stored is what XLA's writer stores for the kernel's own sums, but where these are as near to two numbers
    as float32's last digits; slots of no row keep their bits."""
    rows, tiles = WRITERS[form]
    call = inputs.qkv(
        inputs.Values(0), rows=rows, width=512, heads=4, kv_heads=2, head_dim=64, layout=Layout(16, 4), bias=True,
        dtype=dtype, kv_dtypes=kv_dtypes,
    )  # fmt: skip
    cache = call.arrays["cache"]
    # Some of the values are too large for this scale.
    cache = pk.KVCache(**(vars(cache) | dict(v_scale=None if cache.v_scale is None else 0.3 * cache.v_scale)))
    call = call.replace(cache=cache)
    with guarded():
        q, written = call(implementation, tiles)
        whole = inputs.qkv(
            inputs.Values(0), rows=rows, width=512, heads=4, kv_heads=2, head_dim=64, layout=Layout(16, 4), bias=True,
            dtype=dtype,
        ).replace(cache=pk.KVCache.zeros(cache.k.shape[0], 2, 16, 64, "float32"))  # fmt: skip
        _, exact = whole(implementation, tiles)
    assert np.isfinite(np.asarray(q, np.float32)).all()
    table, at = np.asarray(call.arrays["page_table"]), np.asarray(call.arrays["positions"])
    page, slot = table[np.asarray(call.arrays["sequence"]), at // 16], at % 16
    expected = cache.rounded(*(jnp.moveaxis(x, 1, 2) for x in (exact.k, exact.v)))  # [P, Z, K, H]
    for found, wanted, before in zip((written.k, written.v), expected, (cache.k, cache.v), strict=True):
        found, wanted, before = (np.asarray(x, np.float32) for x in (found, jnp.moveaxis(wanted, 2, 1), before))
        mine, theirs = found[page, :, slot], wanted[page, :, slot]
        assert (mine != theirs).mean() < 2e-3
        np.testing.assert_allclose(mine, theirs, rtol=0.13, atol=1.0)  # a neighbour, in fp8 an eighth away
        untouched = np.ones(found.shape[:1] + found.shape[2:3], bool)
        untouched[page, slot] = False
        np.testing.assert_array_equal(*(np.moveaxis(x, 1, 2)[untouched] for x in (found, before)))
    if kv_dtypes[1] is not None:
        assert np.abs(mine).max() == (127 if kv_dtypes[1] == "int8" else 448)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_rounding_of_every_kind_of_number(dtype, implementation):
    """Ties, subnormal numbers of fp8, numbers that are too large and infinite ones, through a compiled kernel."""
    x = np.concatenate([
        np.linspace(-140, 140, 561), 2.0 ** np.arange(-12, 12), -(2.0 ** np.arange(-12, 12)) * 1.0625,
        [448, 464, 465, 1e9, -1e9, np.inf, -np.inf],
    ]).astype(np.float32)  # fmt: skip
    x = np.resize(x, (8, 2, 64))
    cache = pk.KVCache.zeros(8, 2, 4, 64, dtype)
    heads = np.zeros((8, 6, 64), np.float32)
    heads[:, 2:4], heads[:, 4:] = x, x
    order = [j for i in range(32) for j in (i, i + 32)]  # as `pack_qkv` has them
    pairs = jnp.asarray(heads[:, :, order].reshape(8, -1, 2))
    how = dict(positions=jnp.full(8, 1, jnp.int32), rope=None, out_dtype="float32")
    *_, found = pk.rope_and_cache(pairs, cache, **how, implementation=implementation)
    *_, expected = pk.rope_and_cache(pairs, cache, **how, implementation="xla")
    for one, other in ((found.k, expected.k), (found.v, expected.v)):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
    np.testing.assert_array_equal(np.asarray(found.k[:, :, 1], np.float32), np.asarray(found.v[:, :, 1], np.float32))


@pytest.mark.parametrize("kv_dtypes", [("int8", "int8"), ("float8_e4m3fn",) * 2, ("bfloat16", "int8")], ids=str)
@pytest.mark.parametrize("rows", [1, 8])
def test_a_decode_step(kv_dtypes, rows, implementation):
    """Logits as XLA's implementation gives them, within what bfloat16 rounds."""
    config = ModelConfig(
        family="llama", vocab_size=1000, d_model=512, d_ff=1024, num_heads=8, num_kv_heads=2, head_dim=64,
        layers=(LayerConfig(), LayerConfig(window=10)), max_positions=256, eps=1e-5, rope=Rope(theta=1e4), tied=True,
    )  # fmt: skip
    model = random_model(config, "bfloat16", 0)
    rope, positions = model.rope_tables(128), jnp.full((rows, 1), 17, jnp.int32)
    tokens = jnp.arange(rows, dtype=jnp.int32)[:, None] + 3

    def kv(seed):
        draw, found = inputs.Values(seed), {}
        for name, dtype in zip("kv", kv_dtypes, strict=True):
            stored, found[f"{name}_scale"] = draw.quantised(draw.normal(rows, 2, 128, 64, dtype="bfloat16"), dtype)
            found[name] = draw.poison(stored, np.arange(128)[:, None] < 17)
        return pk.KVCache(**found)

    found = {}
    for name in (implementation, "xla"):
        x, caches, _ = decode.decode_step(
            model, [kv(i) for i in range(2)], tokens, positions, rope, implementation=name
        )  # fmt: skip
        found[name] = np.asarray(decode.logits(model, x, name), np.float64)
        assert [str(x.dtype) for x in (caches[0].k, caches[0].v)] == list(kv_dtypes)
    ours, theirs = found[implementation], found["xla"]
    size = np.sqrt(np.mean(theirs**2))
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < 0.02 * size


def test_a_donated_cache_keeps_its_scales(implementation):
    cache = pk.KVCache.zeros(2, 2, 64, 64, "int8", v_dtype="float8_e4m3fn")
    row = jnp.ones((2, 2, 64))
    write = jax.jit(lambda cache: cache.write(row, row, positions=jnp.zeros(2, jnp.int32)), donate_argnums=0)
    written = write(cache)
    np.testing.assert_array_equal(written.k_scale, np.ones(2))
    q = jnp.ones((2, 4, 64), jnp.bfloat16)
    out = pk.attention(q, written, lengths=jnp.ones(2, jnp.int32), implementation=implementation)
    np.testing.assert_array_equal(np.asarray(out, np.float32), np.ones((2, 4, 64)))
