"""Activations as integers: as near as 16 bits are, and products with them that are exact."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.experimental.pallas import triton as plt

import pallas_kernels as pk
from pallas_kernels.common import launch
from pallas_kernels.common.integer_dots import bytes_of, fixed_point, nearest, nearest_in_kernels, run_sums, totals
from pallas_kernels.common.quantised import RUN
from tests.pallas_kernels.common import ptx
from tests.pallas_kernels.common.test_quantised import normal
from tests.pallas_kernels.marks import slow

FLOATS = hnp.arrays(np.float32, (4 * RUN,), elements=st.floats(-3e4, 3e4, width=32))


def numbers(x):
    """int64 [I], from the bytes."""
    planes = [np.ascontiguousarray(plane).view(dtype) for plane, dtype in ((x.high, np.int8), (x.low, np.uint8))]
    return 256 * planes[0].astype(np.int64) + planes[1].astype(np.int64)


@hypothesis.given(hnp.arrays(np.float32, (64,), elements=st.floats(-32766, 32766, width=32)))
def test_both_ways_to_round_give_the_same(values):
    for floats in (values, np.round(values) + np.float32(0.5), -values):
        found = [np.asarray(round(jnp.asarray(floats))) for round in (nearest, nearest_in_kernels)]
        np.testing.assert_array_equal(*found)
        np.testing.assert_array_equal(found[0], np.rint(floats))


@hypothesis.given(FLOATS)
def test_rounding(values):
    found = fixed_point(jnp.asarray(values), interpret=True)
    whole = numbers(found)
    assert np.abs(whole).max() <= 32767
    stands_for = whole * np.repeat(np.asarray(found.scales, np.float64), RUN)
    largest = np.repeat(np.abs(values.reshape(-1, RUN)).max(axis=1), RUN)
    # Half of a step, and what float32 rounds on the way.
    assert np.all(np.abs(stands_for - values) <= largest * 2.0**-15 * 0.51 + 1e-29)
    np.testing.assert_array_equal(totals(found, interpret=True), whole.reshape(-1, RUN).sum(axis=1))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_finite_scale(broken):
    found = fixed_point(normal(4 * RUN).at[RUN + 3].set(broken), interpret=True)
    assert list(np.isfinite(found.scales)) == [True, False, True, True]


@hypothesis.given(hnp.arrays(np.int8, (3, 4 * RUN)), FLOATS)
def test_products_with_bytes_are_exact(weights, values):
    x = fixed_point(jnp.asarray(values), interpret=True)
    stored = bytes_of(jnp.asarray(weights.view(np.int32)), "int8", 0, interpret=True)
    expected = (weights.astype(np.int64) * numbers(x)).reshape(3, -1, RUN).sum(axis=2)
    np.testing.assert_array_equal(run_sums(stored, x, interpret=True), stored.factor * expected)


@pytest.mark.parametrize("part", [0, 1])
@hypothesis.given(hnp.arrays(np.int8, (3, 8 * RUN), elements=st.integers(-8, 7)), FLOATS)
def test_products_with_nibbles_are_exact(part, weights, values):
    x = fixed_point(jnp.asarray(values), interpret=True)
    packed = np.asarray(pk.pack_int4(jnp.asarray(weights)))
    stored = bytes_of(jnp.asarray(packed.view(np.int32)), "int4", part, interpret=True)
    of_part = np.split(weights, 2, axis=1)[part].astype(np.int64)
    expected = (of_part * numbers(x)).reshape(3, -1, RUN).sum(axis=2)
    np.testing.assert_array_equal(run_sums(stored, x, interpret=True), stored.factor * expected)


def test_the_largest_sums_do_not_overflow():
    x = fixed_point(jnp.full((RUN,), -5.0), interpret=True)
    worst = {"int8": np.full((1, RUN), -128, np.int8), "int4": np.full((1, RUN), -1, np.int8)}
    for format, part, number in (("int8", 0, -128), ("int4", 0, 7), ("int4", 1, 7)):
        stored = bytes_of(jnp.asarray(worst[format].view(np.int32)), format, part, interpret=True)
        found = run_sums(stored, x, interpret=True)
        np.testing.assert_array_equal(found, [[stored.factor * RUN * number * -32767]])


@pytest.fixture
def emulated(monkeypatch):
    """Assembly runs outside of a kernel, and without the hooks that do not."""

    def inline(assembly, *, args, constraints, pack, result_shape_dtypes):
        (result,) = result_shape_dtypes
        arrays = [np.asarray(one) for one in args]
        letters = ["=l" if result.dtype == np.int64 else "=r", *("l" if a.dtype == np.int64 else "r" for a in arrays)]
        assert pack == 1 and constraints == ",".join(letters)
        words = zip(*(a.view(f"u{a.dtype.itemsize}").reshape(-1).tolist() for a in arrays), strict=True)
        found = np.array([ptx.run(assembly, *each)[0] for each in words], f"u{result.dtype.itemsize}")
        return [jnp.asarray(found.view(result.dtype).reshape(arrays[0].shape))]

    monkeypatch.setattr(plt, "elementwise_inline_asm", inline)
    with pk.without_hooks("multiply_add"), jax.enable_x64(True):
        yield


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("format, part", [("int8", 0), ("int4", 0), ("int4", 1)])
def test_assembly_gives_the_same(emulated, format, part, bits):
    words = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 2 * RUN), np.uint8).view(np.int32))
    values = normal(2 * RUN).at[RUN + 5].set(-1e30)
    found, plain = {}, {}
    for interpret, results in ((False, found), (True, plain)):
        x = fixed_point(values, bits, interpret=interpret)
        stored = bytes_of(words, format, part, interpret=interpret)
        results.update(x=x, words=stored.words, sums=run_sums(stored, x, interpret=interpret))
        results["totals"] = totals(x, interpret=interpret)
    jax.tree.map(np.testing.assert_array_equal, found, plain)


@pytest.mark.parametrize("broken", [np.nan, -np.nan, np.inf, -np.inf])
def test_assembly_sees_what_is_not_finite(emulated, broken):
    found = fixed_point(normal(2 * RUN).at[RUN + 3].set(broken), interpret=False)
    assert list(np.isfinite(found.scales)) == [True, False]


TILES = pk.Tiles(block_n=8, block_k=64, num_warps=1, num_stages=3)


@pytest.mark.parametrize(
    "op, rows, inputs, way",
    [
        ("gate_up", 1, 416, ("int4", 32, False)),
        slow("gate_up", 2, 416, ("int4", 32, True)),
        slow("out", 2, 208, ("int8", 64, False)),
        slow("down", 1, 416, ("int4", None, False)),
        slow("head_logits", 1, 208, ("int8", None, True)),
        slow("out", 1, 416, ("int8", 48, True)),
    ],
)
def test_kernels(op, rows, inputs, way):
    """Blocks hang over both edges and what lies behind is poisoned; RMS against float32, beside XLA's in bfloat16."""
    format, group, symmetric = way
    shape = (41, 2, inputs) if op == "gate_up" else (41, inputs)
    x, norm = normal(rows, inputs, seed=1).astype(jnp.bfloat16), (1 + 0.1 * normal(inputs, seed=2)).astype(jnp.bfloat16)
    given = dict(x=x) if op in ("out", "down") else dict(x=x, norm=norm)
    if op == "down":
        given["residual"] = normal(rows, 41, seed=3)
    weight = pk.quantise(
        normal(*shape) / inputs**0.5, format, group=group, symmetric=symmetric, scale_dtype=jnp.bfloat16
    )
    function, stands_for = getattr(pk, op), pk.dequantise(weight)
    with launch.guarded():
        found = function(weight=weight, implementation="interpret", tiles=TILES, **given)
    wide = {name: value.astype(jnp.float32) for name, value in given.items()}
    truth = function(weight=pk.DenseWeight(values=stands_for), implementation="xla", **wide)
    beside = function(weight=pk.DenseWeight(values=stands_for.astype(jnp.bfloat16)), implementation="xla", **given)
    ours, theirs = (float(jnp.sqrt(jnp.mean((one.astype(jnp.float32) - truth) ** 2))) for one in (found, beside))
    assert ours <= 1.5 * theirs, (ours, theirs)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_what_is_not_finite_ends_in_its_row_alone(format):
    weight = pk.quantise(normal(16, 128), format, scale_dtype=jnp.bfloat16)
    x = normal(2, 128, seed=1).astype(jnp.bfloat16).at[1, 70].set(jnp.nan)
    found = pk.out(x, weight, implementation="interpret", tiles=TILES)
    assert np.all(np.isfinite(np.asarray(found[0], np.float32))) and np.all(np.isnan(np.asarray(found[1], np.float32)))


MMA = pk.Tiles(block_n=16, block_k=32, num_warps=1, num_stages=3, mma=True)


@pytest.mark.parametrize("tiles, rows", [(TILES, 2), (MMA, 3)], ids=["vectors", "tensor cores"])
@pytest.mark.parametrize("format, group", [("int8", None), ("int4", 32)])
def test_activations_of_8_bits(format, group, tiles, rows):
    """Of numbers that 8 bits have: the products are of these. Of others: as near as the rounded ones are."""
    weight = pk.quantise(normal(48, 128), format, group=group, scale_dtype=jnp.bfloat16, activations="int8")
    exact = np.asarray(pk.dequantise(weight), np.float64)
    numbers = np.random.default_rng(1).integers(-127, 128, (rows, 128)).astype(np.float64)
    numbers[:, ::RUN] = 127  # the largest of every run
    error = {}
    for name, x in (("bytes", numbers), ("others", np.asarray(normal(rows, 128, seed=2), np.float64))):
        x = jnp.asarray(x, jnp.bfloat16)
        truth = np.asarray(x, np.float64) @ exact.T
        for implementation in ("interpret", "xla"):
            call = dict(implementation=implementation, tiles=tiles if implementation == "interpret" else None)
            found = np.asarray(pk.out(x, weight, out_dtype=jnp.float32, **call), np.float64)
            error[name, implementation] = np.sqrt(np.mean((found - truth) ** 2) / np.mean(truth**2))
    # Groups' scales make weights of 16 bits, and products of them: 2^-9 each at most.
    assert max(error["bytes", "interpret"], error["bytes", "xla"]) < 2.0**-8
    # A rounding to 8 bits is off by up to 1/254 of the largest of 16, by half of that on average.
    assert 2.0**-9 < error["others", "interpret"] < 2.0**-6
    assert error["others", "interpret"] == pytest.approx(error["others", "xla"], rel=0.3)


def test_a_decode_step_and_prefill_see_the_same_activations():
    """`project`, which prefill takes, rounds them as the kernels do."""
    values, x = normal(48, 128), normal(2, 128, seed=2)
    eight, sixteen = (pk.quantise(values, "int8", dtype=jnp.float32, activations=one) for one in ("int8", None))
    found = pk.project(x, eight)
    np.testing.assert_allclose(found, pk.out(x, eight, implementation="interpret", tiles=TILES), rtol=1e-5, atol=1e-4)
    assert not np.allclose(found, pk.project(x, sixteen), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(activations="int4"), "^weight.activations: expected one of int8, got 'int4'"),
        (dict(format="fp8"), "^weight.activations: expected None for fp8"),
        (dict(group=24), "^weight.activations: for 'int8' the group is a multiple of 16, got 24"),
        (dict(inputs=120), "^weight.activations: for 'int8' the array's last axis is a multiple of 16, got 120"),
        (dict(inputs=144, format="int4"), "^weight.activations: for 'int8' the array's last axis .* 16, got 72"),
    ],
)
def test_activations_that_cannot_be_rounded(change, match):
    how = dict(format="int8", group=None, inputs=128, activations="int8") | change
    inputs = how.pop("inputs")
    with pytest.raises(ValueError, match=match):
        pk.out(normal(1, inputs), pk.quantise(normal(48, inputs), **how, dtype=jnp.float32), implementation="xla")
