"""Compiled kernels on quantised weights against float64, in guarded buffers; and a decode step of a quantised model.

The RMS error over draws is at most 1.5 times that of XLA in the same dtype on the numbers that the weight stands for.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.common.launch import guarded
from tests.gpu.test_accuracy import TENSOR_CORE_FLOOR
from tokenspeed.engine import decode
from tokenspeed.models.config import LayerConfig, ModelConfig, Rope
from tokenspeed.models.quantisation import HEAD, PACKED, Quantisation, Scheme
from tokenspeed.weights.random import random_model

VECTORS = pk.Tiles(block_n=4, block_k=32)
PIPELINED = pk.Tiles(block_n=4, block_k=128, num_stages=4)
TENSOR_CORES = pk.Tiles(block_n=32, block_k=32, num_warps=2, num_stages=4, mma=True)
FORMS = {
    "vectors": (2, VECTORS),
    "pipelined": (1, PIPELINED),
    "tensor cores": (1, TENSOR_CORES),
    "a row of few": (5, TENSOR_CORES),
    "many rows": (60, pk.Tiles(block_n=32, block_k=32, num_stages=3, mma=True, block_m=64)),
    "weights first": (37, pk.Tiles(block_n=64, block_k=32, num_stages=3, mma=True, block_m=32, swap_ab=True)),
    "the heuristic": (1, None),
}
WAYS = [("int8", None, True), ("int8", 64, False), ("fp8", None, True), ("fp8", 128, True), ("int4", 32, True),
        ("int4", 128, False), ("int4", None, True)]  # fmt: skip


OPS = ("out", "gate_up", "head_logits")


def normal(*shape, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def arguments(op, rows, inputs, dtype, seed):
    x = normal(rows, inputs, seed=seed).astype(dtype)
    return dict(x=x) if op == "out" else dict(x=x, norm=1 + 0.1 * normal(inputs, seed=seed + 1).astype(dtype))


# Every way in every form; ops take turns, since what differs between them is not how a weight is unpacked.
@pytest.mark.parametrize(
    "op, way, form",
    [(OPS[(i + j) % len(OPS)], way, form) for i, way in enumerate(WAYS) for j, form in enumerate(FORMS)],
    ids=str,
)
@pytest.mark.parametrize("inputs", [1024, 1000])
def test_kernels(op, way, form, inputs, implementation, draws):
    (rows, tiles), (format, group, symmetric) = FORMS[form], way
    function, shape = getattr(pk, op), (301, 2, inputs) if op == "gate_up" else (301, inputs)
    for dtype in ("bfloat16", "float16", "float32") if inputs == 1024 else ("bfloat16",):
        ours, theirs, scale = [], [], []
        for seed in range(draws):
            weight = pk.quantise(
                normal(*shape, seed=seed) / inputs**0.5, format, group=group, symmetric=symmetric, dtype=dtype,
                scale_dtype=jnp.bfloat16,
            )  # fmt: skip
            given, stands_for = arguments(op, rows, inputs, dtype, 100 + seed), pk.dequantise(weight)
            wide = jax.tree.map(lambda x: x.astype(jnp.float32), given)
            truth = function(weight=pk.DenseWeight(values=stands_for), implementation="xla", **wide)
            with guarded():
                found = function(weight=weight, implementation=implementation, tiles=tiles, **given)
                again = function(weight=weight, implementation=implementation, tiles=tiles, **given)
            np.testing.assert_array_equal(found, again)
            rounded = pk.DenseWeight(values=stands_for.astype(dtype))
            beside = function(weight=rounded, implementation="xla", **given)
            for errors, one in ((ours, found), (theirs, beside)):
                errors.append(float(jnp.mean((one.astype(jnp.float32) - truth) ** 2)))
            scale.append(float(jnp.mean(truth**2)))
        rms, beside, size = (np.sqrt(np.mean(x)) for x in (ours, theirs, scale))
        assert rms <= max(1.5 * beside, TENSOR_CORE_FLOOR[dtype] * size), f"{dtype}: {rms}, XLA's {beside} of {size}"


def test_rows_know_nothing_of_each_other(implementation):
    weight = pk.quantise(normal(256, 1024, seed=0), "int4", group=128, scale_dtype=jnp.bfloat16)
    x = normal(9, 1024, seed=1).astype(jnp.bfloat16)
    whole = pk.out(x, weight, implementation=implementation, tiles=TENSOR_CORES)
    for other in (0.0, jnp.inf):
        changed = pk.out(x.at[3].set(other), weight, implementation=implementation, tiles=TENSOR_CORES)
        kept = np.arange(9) != 3
        np.testing.assert_array_equal(whole[kept], changed[kept])


INTEGERS = pk.Tiles(block_n=8, block_k=256, num_warps=2, num_stages=3)


@pytest.mark.parametrize("tiles", [INTEGERS, pk.Tiles(block_n=8, block_k=512, num_warps=2)], ids=["a ring", "at once"])
@pytest.mark.parametrize("format, group", [("int8", None), ("int4", 128), ("int4", 32)])
@pytest.mark.parametrize("inputs", [4096, 1008])
def test_words_are_the_bytes_that_lie_there(format, group, tiles, inputs, implementation):
    """Loaded as words or byte by byte, the sums are the same: those of a run exactly, those of runs in float32, whose
    order and roundings are the compiler's, so up to 2^-24 of what is added up, some 60, at each of a few dozen sums."""
    weight = pk.quantise(normal(301, inputs, seed=0), format, group=group, scale_dtype=jnp.bfloat16)
    x = normal(2, inputs, seed=1).astype(jnp.bfloat16)
    call = dict(implementation=implementation, tiles=tiles, out_dtype=jnp.float32)
    with guarded():
        whole = pk.out(x, weight, **call)
        with pk.without_hooks("load_words"):
            np.testing.assert_allclose(whole, pk.out(x, weight, **call), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(whole, pk.out(x, weight, implementation="interpret", tiles=tiles), rtol=0.01, atol=0.1)


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("broken", [jnp.nan, jnp.inf])
def test_integers_of_what_is_not_finite(format, broken, implementation):
    weight = pk.quantise(normal(64, 1024, seed=0), format, group=128, scale_dtype=jnp.bfloat16)
    x = normal(2, 1024, seed=1).astype(jnp.bfloat16).at[1, 700].set(broken)
    found = np.asarray(pk.out(x, weight, implementation=implementation, tiles=INTEGERS, out_dtype=jnp.float32))
    assert np.all(np.isfinite(found[0])) and not np.any(np.isfinite(found[1]))


@pytest.mark.parametrize("tiles, rows", [(INTEGERS, 1), (INTEGERS, 2), (TENSOR_CORES, 5)])
@pytest.mark.parametrize("format, group", [("int8", None), ("int4", 128)])
def test_activations_of_8_bits(format, group, tiles, rows, implementation):
    """Against float64 on activations that 8 bits have, so that nothing of them is lost."""
    weight = pk.quantise(
        normal(301, 1024, seed=0), format, group=group, scale_dtype=jnp.bfloat16, activations="int8"
    )  # fmt: skip
    x = np.random.default_rng(1).integers(-127, 128, (rows, 1024)).astype(np.float64)
    x[:, ::16] = 127  # the largest of a run
    found = pk.out(
        jnp.asarray(x, jnp.bfloat16), weight, implementation=implementation, tiles=tiles, out_dtype=jnp.float32
    )  # fmt: skip
    truth = x @ np.asarray(pk.dequantise(weight), np.float64).T
    # Vectors are exact but for float32 sums; tensor cores see int4 with its group's scale in float32, int8 in 16 bits.
    assert np.sqrt(np.mean((np.asarray(found) - truth) ** 2) / np.mean(truth**2)) < (1e-5 if not tiles.mma else 2e-3)


MAKERS = pk.Tiles(block_n=16, block_k=256, num_warps=2, num_stages=3)
FIXED = [MAKERS, pk.Tiles(block_n=32, block_k=128, num_warps=4)]


@pytest.mark.parametrize("bits", [16, 8])
def test_rounding_to_fixed_point_as_numpy_does(bits):
    x = normal(3, 1024, seed=1)
    found = jax.jit(functools.partial(pk.to_fixed_point, bits=bits))(x)
    runs = np.asarray(x, np.float64).reshape(3, -1, 16)
    exact = runs / np.abs(runs).max(-1, keepdims=True) * (2 ** (bits - 1) - 1)
    high, low = (np.asarray(found.numbers, np.int32)[:, plane] for plane in (0, -1))
    numbers = (high if bits == 8 else 256 * high + (low & 0xFF)).reshape(runs.shape)
    assert np.abs(numbers - exact).max() < 0.51, "the nearest; products in float32 lose 2^-8 of it"
    np.testing.assert_array_equal(np.asarray(found.runs)[..., 1], numbers.sum(-1))


@pytest.mark.parametrize("tiles", FIXED, ids=["a ring", "at once"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("format, group", [("int8", None), ("int4", 128), ("int4", 32)])
def test_activations_in_fixed_point(format, group, rows, tiles, implementation):
    """Against float64 on the numbers that fixed point stands for, of which nothing is lost but by float32 sums."""
    weight = pk.quantise(normal(304, 1024, seed=0), format, group=group, scale_dtype=jnp.bfloat16)
    x = pk.to_fixed_point(normal(rows, 1024, seed=1), dtype=jnp.bfloat16)
    with guarded():
        found = pk.out(x, weight, implementation=implementation, tiles=tiles, out_dtype=jnp.float32)
        again = pk.out(x, weight, implementation=implementation, tiles=tiles, out_dtype=jnp.float32)
    np.testing.assert_array_equal(found, again)
    exact = np.asarray(pk.to_floats(dataclasses.replace(x, dtype=jnp.dtype(jnp.float32))), np.float64)
    truth = exact @ np.asarray(pk.dequantise(weight), np.float64).T
    assert np.sqrt(np.mean((np.asarray(found) - truth) ** 2) / np.mean(truth**2)) < 1e-5


def assert_rounded(found, plain):
    """That rows are those in 16-bit fixed point: each within half a step, 2^-16 of the largest of 16 neighbours, and as
    much again where the division by the step, or the sum before it, comes out otherwise by its last bit."""
    assert isinstance(found, pk.FixedPointRows) and found.bits == 16
    wide = pk.to_floats(dataclasses.replace(found, dtype=jnp.dtype(jnp.float32)))
    plain = np.asarray(plain, np.float32).reshape(found.shape)
    steps = np.abs(plain).reshape(len(plain), -1, 16).max(-1) / 32767
    assert np.all(np.abs(wide - plain).reshape(*steps.shape, 16) <= 1.05 * steps[..., None] + 1e-12)
    numbers = np.asarray(found.numbers, np.int32)
    whole = 256 * numbers[:, 0] + (numbers[:, 1] & 0xFF)
    np.testing.assert_array_equal(found.runs[..., 1], whole.reshape(len(whole), -1, 16).sum(-1))


@pytest.mark.parametrize("tiles", FIXED, ids=["a ring", "at once"])
@pytest.mark.parametrize("rows", [1, 2])
def test_down_makes_fixed_point(rows, tiles, implementation):
    """With all runs and sums of squares as without: the stream in float32 is the same to the bit."""
    weight = pk.quantise(normal(304, 1024, seed=0), "int4", group=128, scale_dtype=jnp.bfloat16)
    given = dict(
        x=normal(rows, 1024, seed=1).astype(jnp.bfloat16), weight=weight, residual=normal(rows, 304, seed=2),
        norm=1 + 0.1 * normal(304, seed=3), implementation=implementation, tiles=tiles,
    )  # fmt: skip
    with guarded():
        (found, total), (plain, same) = (pk.down(**given, fixed_point=bits) for bits in (16, None))
    np.testing.assert_array_equal(total, same)
    np.testing.assert_array_equal(found.squares, plain.squares)
    assert_rounded(found.x, total * given["norm"])


@pytest.mark.parametrize("tiles", FIXED, ids=["a ring", "at once"])
@pytest.mark.parametrize("rows", [1, 2])
def test_gate_up_takes_and_makes_fixed_point(rows, tiles, implementation):
    weight = pk.quantise(normal(304, 2, 1024, seed=0) / 32, "int4", group=128, scale_dtype=jnp.bfloat16)
    x = pk.defer_norm(normal(rows, 1024, seed=1), 1 + 0.1 * normal(1024, seed=2), dtype=jnp.float32, part=16)
    x = dataclasses.replace(x, x=pk.to_fixed_point(x.x, dtype=jnp.bfloat16))
    with guarded():
        found = pk.gate_up(x, None, weight, fixed_point=16, implementation=implementation, tiles=tiles)
        plain = pk.gate_up(x, None, weight, implementation=implementation, tiles=tiles)
    wide = np.asarray(pk.to_floats(dataclasses.replace(found, dtype=jnp.dtype(jnp.float32))))
    # Of one sum two roundings: that of bfloat16, 2^-9, and that of fixed point, which small neighbours feel.
    steps = np.abs(wide).reshape(rows, -1, 16).max(-1, keepdims=True) / 32767
    allowed = 2**-8 * np.abs(wide) + np.broadcast_to(steps, (rows, 19, 16)).reshape(wide.shape)
    assert np.all(np.abs(wide - np.asarray(plain, np.float32)) <= allowed)


@pytest.mark.parametrize("splits", [1, 4])
def test_attention_makes_fixed_point(splits, implementation):
    q, k, v = (normal(*shape, seed=i) for i, shape in enumerate([(2, 8, 64), (2, 2, 256, 64), (2, 2, 256, 64)]))
    tiles = pk.AttentionTiles(block_s=32, splits=splits, num_warps=2)
    given = dict(
        q=q, cache=pk.KVCache(k=k, v=v), lengths=jnp.array([256, 37]), implementation=implementation, tiles=tiles
    )  # fmt: skip
    with guarded():
        found, plain = (pk.attention(**given, fixed_point=bits) for bits in (16, None))
    assert_rounded(found, plain)


def scheme(format, group=None):
    return Scheme(layout=PACKED, format=format, group=group)


@pytest.mark.parametrize("weights", [scheme("int4", 128), scheme("int8")], ids=["int4", "int8"])
@pytest.mark.parametrize("rows", [1, 8])
def test_a_decode_step_of_a_quantised_model(weights, rows, implementation):
    """Logits as XLA's implementation gives them, within what bfloat16 rounds."""
    found, plain = (step(weights, rows, implementation=name) for name in (implementation, "xla"))
    assert difference(found, plain) < 0.02


@pytest.mark.parametrize("weights, activations", [(scheme("int4", 128), None), (scheme("int8"), "int8")])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_decode_step_with_and_without_fixed_point(weights, activations, rows, implementation):
    """Without it activations are rounded to bfloat16 between kernels."""
    took, tiles = set(), pk.Tiles(block_n=16, block_k=128, num_warps=2, num_stages=3)

    def noting(name, x, *args, **how):
        if isinstance(getattr(x, "x", x), pk.FixedPointRows):
            took.add(name)
        return getattr(pk, name)(x, *args, tiles=tiles, **how)

    ops = ("qkv", "out", "gate_up", "down", "head_logits")
    kernels = types.SimpleNamespace(
        attention=pk.attention, fixed_point_bits=functools.partial(pk.fixed_point_bits, tiles=tiles),
        **{name: functools.partial(noting, name) for name in ops},
    )  # fmt: skip
    how = dict(activations=activations, implementation=implementation, kernels=kernels)
    found = step(weights, rows, **how)
    assert took == set(ops) - ({"head_logits"} if activations is None else set()), "an int8 head takes floats"
    kernels.fixed_point_bits = lambda *_: None
    took.clear()
    plain = step(weights, rows, **how)
    assert not took
    assert difference(found, plain) < 0.02


def step(weights, rows, activations=None, **how):
    """The logits of a decode step of a small model with projections quantised in a way, [rows, V]."""
    config = ModelConfig(
        family="llama", vocab_size=1000, d_model=512, d_ff=1024, num_heads=8, num_kv_heads=2, head_dim=64,
        layers=(LayerConfig(),) * 2, max_positions=256, eps=1e-5, rope=Rope(theta=1e4), tied=True,
        quantisation=Quantisation(schemes=(((HEAD,), scheme("int8")), (("Linear",), weights)), tied_head=True),
    )  # fmt: skip
    model = random_model(config.with_activations(activations), "bfloat16", 0)
    rope, positions = model.rope_tables(128), jnp.full((rows, 1), 17, jnp.int32)
    tokens = jnp.arange(rows, dtype=jnp.int32)[:, None] + 3

    @jax.jit
    def kv(key):
        k, v = jax.random.normal(key, (2, rows, 2, 128, 64), jnp.bfloat16)
        return pk.KVCache(k=k, v=v)

    caches = [kv(jax.random.key(i)) for i in range(2)]
    x, _, _ = decode.decode_step(model, caches, tokens, positions, rope, **how)
    return np.asarray(decode.logits(model, x, **how), np.float64)


def difference(found, plain):
    """RMS of the difference, over RMS."""
    return np.sqrt(np.mean((found - plain) ** 2) / np.mean(plain**2))
