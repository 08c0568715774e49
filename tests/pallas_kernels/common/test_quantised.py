"""Quantised weights: what they stand for, products with them, and what is refused."""

import dataclasses

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pallas_kernels as pk
from pallas_kernels.common import launch
from tests.pallas_kernels import lowering
from tests.pallas_kernels.marks import slow

WAYS = [
    ("int8", None, True), ("fp8", None, True), ("int4", 32, True), ("int4", 32, False), ("int8", 64, False),
    ("int4", 128, True), ("int4", 128, False), ("fp8", 128, True), ("int4", None, True), ("int8", None, False),
]  # fmt: skip
"""(format, group, symmetric)."""


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def in_float64(weight):
    """What a weight stands for, from its parts, one at a time."""
    *outputs, inputs = weight.shape
    values = np.asarray(weight.values)
    if weight.format == "int4":
        low, high = values & 15, values >> 4
        values = np.concatenate([low, high], axis=-1).astype(np.int64) - 8
    found = np.zeros((*outputs, inputs))
    for i in range(inputs):
        group = 0 if weight.group is None else i // weight.group
        zero = 0 if weight.zeros is None else np.asarray(weight.zeros)[..., group].astype(np.float64)
        found[..., i] = (values[..., i].astype(np.float64) - zero) * np.asarray(weight.scales, np.float64)[..., group]
    return found


@hypothesis.given(hnp.arrays(np.int8, (3, 14), elements=st.integers(-8, 7)))
def test_int4_round_trips(values):
    packed = pk.pack_int4(jnp.asarray(values))
    assert packed.dtype == jnp.uint8 and packed.shape == (3, 7)
    np.testing.assert_array_equal(pk.unpack_int4(packed), values)


@pytest.mark.parametrize(
    "format, group, symmetric", [*WAYS[2:4], *(slow(*way) for way in WAYS if way not in WAYS[2:4])]
)
@pytest.mark.parametrize("shape", [(3, 2, 200)])
def test_rounding(format, group, symmetric, shape):
    """Each number is at most half a step away, and what it stands for is as the parts say."""
    values = normal(*shape)
    weight = pk.quantise(values, format, group=group, symmetric=symmetric)
    assert weight.shape == shape and weight.format == format
    stands_for = pk.dequantise(weight)
    np.testing.assert_allclose(stands_for, in_float64(weight), rtol=1e-6, atol=0)
    scales = np.asarray(weight.scales)
    spread = np.repeat(scales, group or shape[-1], axis=-1)[..., : shape[-1]]
    # e4m3 has three bits behind the first; zero points round the ends of a group, by half a step more.
    step = np.abs(values) / 16 + spread * 2**-10 if format == "fp8" else spread * (0.5 if symmetric else 1.0)
    assert np.all(np.abs(stands_for - values) <= step * 1.001)


def test_the_ends_of_a_group_and_groups_of_zeros():
    values = jnp.asarray([[-1.0, 0.5, 0.25, 1.0, 0, 0, 0, 0]])
    for format, symmetric in [("int8", True), ("int4", True), ("fp8", True), ("int8", False), ("int4", False)]:
        found = np.asarray(pk.dequantise(pk.quantise(values, format, group=4, symmetric=symmetric)))
        assert np.all(found[0, 4:] == 0)
        if symmetric:
            np.testing.assert_allclose(found[0, [0, 3]], [-1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("format, group, symmetric", [WAYS[3], *(slow(*way) for way in WAYS if way != WAYS[3])])
@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16")])
def test_products(format, group, symmetric, dtype):
    """Against float64 on the numbers that the weight stands for, as good as a product of a rounded weight."""
    x, values, bias = normal(4, 256, seed=1).astype(dtype), normal(48, 2, 256), normal(48, 2, seed=2)
    weight = pk.quantise(values, format, group=group, symmetric=symmetric, dtype=dtype, bias=bias)
    exact = in_float64(weight)
    truth = np.einsum("bi,oci->boc", np.asarray(x, np.float64), exact) + np.asarray(bias, np.float64)
    rounded = pk.DenseWeight(values=jnp.asarray(exact, jnp.float32).astype(dtype), bias=bias)

    def rms(found):
        return float(np.sqrt(np.mean((np.asarray(found, np.float64) - truth) ** 2)))

    assert rms(pk.project(x, weight)) <= 1.5 * max(rms(pk.project(x, rounded)), 1e-6)


VECTORS = pk.Tiles(block_n=4, block_k=32, num_warps=1)
TENSOR_CORES = pk.Tiles(block_n=16, block_k=32, num_warps=1, num_stages=3, mma=True)
SWAPPED = dataclasses.replace(TENSOR_CORES, swap_ab=True, block_k=16)


def ops(rows, inputs, seed=1):
    """(op, its weight's shape, the other arguments)."""
    x, norm = normal(rows, inputs, seed=seed), normal(inputs, seed=3)
    positions, rope = jnp.arange(rows, dtype=jnp.int32), tuple(normal(32, 8, seed=i) for i in (4, 5))
    cache = pk.KVCache(k=normal(rows, 1, 32, 16, seed=6), v=normal(rows, 1, 32, 16, seed=7))
    return dict(
        qkv=(pk.qkv, (32, 2, inputs), dict(x=x, norm=norm, cache=cache, positions=positions, rope=rope)),
        out=(pk.out, (48, inputs), dict(x=x)),
        gate_up=(pk.gate_up, (40, 2, inputs), dict(x=x, norm=norm)),
        down=(pk.down, (48, inputs), dict(x=x, residual=normal(rows, 48))),
        head_logits=(pk.head_logits, (80, inputs), dict(x=x, norm=norm)),
        head=(pk.head, (80, inputs), dict(x=x, norm=norm)),
    )


@pytest.mark.parametrize(
    "op, rows, inputs, way, tiles",
    [
        slow("gate_up", 1, 256, ("int8", None, True), VECTORS),
        slow("out", 2, 200, ("int4", 32, False), VECTORS),
        slow("down", 3, 256, ("int4", 32, True), TENSOR_CORES),
        slow("qkv", 2, 256, ("int4", 64, False), None),
        ("head_logits", 5, 200, ("fp8", None, True), SWAPPED),
        slow("qkv", 20, 256, ("int8", None, False), None),
        slow("out", 20, 256, ("int4", 32, True), dataclasses.replace(TENSOR_CORES, splits=2)),
        slow("down", 1, 200, ("int8", 64, False), VECTORS),
        slow("gate_up", 3, 200, ("int4", None, True), SWAPPED),
        slow("gate_up", 20, 256, ("fp8", 128, True), None),
        slow("head", 1, 200, ("int4", 128, False), None),
        slow("head_logits", 2, 256, ("fp8", 32, True), VECTORS),
    ],
)
def test_kernels(op, rows, inputs, way, tiles):
    """In interpret mode, with what lies behind every array poisoned, against XLA on what the weight stands for."""
    function, shape, arguments = ops(rows, inputs)[op]
    format, group, symmetric = way
    weight = pk.quantise(normal(*shape), format, group=group, symmetric=symmetric, dtype=jnp.float32)
    dense = pk.DenseWeight(values=pk.dequantise(weight))
    with launch.guarded():
        found = function(weight=weight, implementation="interpret", tiles=tiles, **arguments)
    for expected in (weight, dense):
        chex.assert_trees_all_close(
            found, function(weight=expected, implementation="xla", **arguments), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("format, group, symmetric", WAYS[:4])
@pytest.mark.parametrize("tiles", [VECTORS, TENSOR_CORES])
def test_kernels_round_no_more_than_16_bits_do(format, group, symmetric, tiles):
    """The RMS error in bfloat16, over draws, against float64 on what the weight stands for."""
    weight = pk.quantise(normal(64, 256), format, group=group, symmetric=symmetric, scale_dtype=jnp.bfloat16)
    exact = in_float64(weight)
    rounded = pk.DenseWeight(values=jnp.asarray(exact, jnp.bfloat16))
    x = normal(8, 256, seed=1).astype(jnp.bfloat16)
    truth = np.asarray(x, np.float64) @ exact.T

    def rms(found):
        return float(np.sqrt(np.mean((np.asarray(found, np.float64) - truth) ** 2)))

    rows = [pk.out(x[i : i + 2], weight, implementation="interpret", tiles=tiles) for i in range(0, 8, 2)]
    assert rms(jnp.concatenate(rows)) <= 1.5 * rms(pk.out(x, rounded, implementation="xla"))


def test_what_takes_only_unquantised_weights_says_so():
    with pytest.raises(TypeError, match=r"^weight: expected a DenseWeight"):
        pk.unpack_linear(pk.quantise(normal(48, 64), "int8"))


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(scales=jnp.ones((6, 3))), r"^weight.scales: expected shape \[6, 2\]"),
        (dict(scales=jnp.ones((6, 2), jnp.int32)), "^weight.scales: expected a floating-point dtype"),
        (dict(zeros=jnp.zeros((6, 1), jnp.int8)), r"^weight.zeros: expected shape \[6, 2\]"),
        (dict(zeros=jnp.zeros((6, 2))), "^weight.zeros: expected dtype int8"),
        (dict(values=jnp.zeros((6, 64), jnp.int32)), "^weight.values: expected int8, float8_e4m3fn or uint8"),
        (dict(values=jnp.zeros((6, 30), jnp.int8)), r"^weight: expected shape \[O, 64\]"),
        (dict(bias=jnp.zeros((5,))), r"^weight.bias: expected shape \[6\]"),
    ],
)
def test_parts_that_do_not_go_together(change, match):
    weight = dataclasses.replace(pk.quantise(normal(6, 64), "int8", group=32), **change)
    with pytest.raises((ValueError, TypeError), match=match):
        pk.project(normal(2, 64), weight)


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(format="int3"), "^format: expected one of int8, fp8, int4"),
        (dict(group=0), "^group: "),
        (dict(group=128), "^group: expected at most the 64 inputs"),
        (dict(values=jnp.zeros((6, 63)), format="int4"), "^values: expected an even number of inputs for int4, got 63"),
        (dict(format="fp8", symmetric=False), "^symmetric: expected True for fp8"),
        (dict(values=jnp.zeros((6, 64), jnp.int32)), "^values: expected a floating-point dtype"),
    ],
)
def test_what_cannot_be_quantised(change, match):
    with pytest.raises((ValueError, TypeError), match=match):
        pk.quantise(**dict(values=normal(6, 64), format="int8") | change)


def test_they_are_pytrees_and_count_their_bytes():
    weight = pk.quantise(normal(6, 64), "int4", group=32, symmetric=False, scale_dtype=jnp.bfloat16)
    chex.assert_trees_all_equal(jax.jit(lambda w: w)(weight), weight)
    assert weight.nbytes == 6 * 32 + 6 * 2 * 2 + 6 * 2


@pytest.mark.slow
@pytest.mark.parametrize("format, group, symmetric", WAYS[:4])
@pytest.mark.parametrize("rows, dtype", [(1, "bfloat16"), (3, "float16"), (40, "bfloat16"), (1, "float32")])
def test_they_lower_for_a_gpu(format, group, symmetric, rows, dtype):
    """Without one; the heuristic's tiles, and of the search space the first and the last."""
    arguments = dict(x=jax.ShapeDtypeStruct((rows, 1024), dtype), norm=jax.ShapeDtypeStruct((1024,), dtype))
    weight = jax.eval_shape(
        lambda x: pk.quantise(x, format, group=group, symmetric=symmetric, scale_dtype=jnp.bfloat16, dtype=dtype),
        jax.ShapeDtypeStruct((512, 2, 1024), jnp.float32),
    )
    op = pk.OPS["gate_up"]
    shape = op.shape(weight=weight, **arguments)
    fitting = [tiles for tiles in op.search_space(shape) if op.feasible(tiles, shape, pk.DEVICES["h100"])]
    for tiles in (None, *fitting[:: max(1, len(fitting) - 1)]):
        assert "triton" in lowered(pk.gate_up, tiles, weight=weight, **arguments), tiles


@pytest.mark.parametrize("tiles", [VECTORS, TENSOR_CORES], ids=["vectors", "tensor cores"])
@pytest.mark.parametrize("format", pk.FORMATS)
def test_blocks_that_hang_over_an_edge_lower_for_a_gpu(format, tiles):
    """Of outputs and of inputs: only compiled kernels mask what they load of a weight."""
    weight = jax.eval_shape(lambda x: pk.quantise(x, format), jax.ShapeDtypeStruct((301, 1000), jnp.float32))
    x = jax.ShapeDtypeStruct((2, 1000), jnp.bfloat16)
    assert "triton" in lowered(pk.out, tiles, weight=weight, x=x)


def lowered(function, tiles, **arguments):
    """The lowered module's text of a call for a GPU that is not there."""
    with lowering.for_gpu():
        call = jax.jit(lambda **a: function(implementation="triton", tiles=tiles, **a))
        return call.trace(**arguments).lower(lowering_platforms=("cuda",)).as_text()
