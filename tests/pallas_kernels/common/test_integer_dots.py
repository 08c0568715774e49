"""Activations as integers: as near as 16 bits are, and products with them that are exact."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pallas_kernels as pk
from pallas_kernels.common import launch
from pallas_kernels.common.integer_dots import RUN, bytes_of, fixed_point, run_sums
from tests.pallas_kernels.common.test_quantised import normal
from tests.pallas_kernels.marks import slow

FLOATS = hnp.arrays(np.float32, (4 * RUN,), elements=st.floats(-3e4, 3e4, width=32))


def numbers(x):
    """int64 [I], from the bytes."""
    planes = [np.ascontiguousarray(plane).view(dtype) for plane, dtype in ((x.high, np.int8), (x.low, np.uint8))]
    return 256 * planes[0].astype(np.int64) + planes[1].astype(np.int64)


@hypothesis.given(FLOATS)
def test_rounding(values):
    found = fixed_point(jnp.asarray(values), interpret=True)
    whole = numbers(found)
    assert np.abs(whole).max() <= 32767
    stands_for = whole * np.repeat(np.asarray(found.scales, np.float64), RUN)
    largest = np.repeat(np.abs(values.reshape(-1, RUN)).max(axis=1), RUN)
    # Half of a step, and what float32 rounds on the way.
    assert np.all(np.abs(stands_for - values) <= largest * 2.0**-15 * 0.51 + 1e-29)
    np.testing.assert_array_equal(found.totals, whole.reshape(-1, 4).sum(axis=1))
    np.testing.assert_allclose(
        found.sums, stands_for.reshape(-1, RUN).sum(axis=1), rtol=1e-6, atol=1e-6 * largest.max()
    )


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_finite_scale(broken):
    found = fixed_point(normal(4 * RUN).at[RUN + 3].set(broken), interpret=True)
    assert list(np.isfinite(found.scales)) == [True, False, True, True]


@hypothesis.given(hnp.arrays(np.int8, (3, 4 * RUN)), FLOATS)
def test_products_with_bytes_are_exact(weights, values):
    x = fixed_point(jnp.asarray(values), interpret=True)
    stored = bytes_of(jnp.asarray(weights.view(np.int32)), "int8", 0)
    expected = (weights.astype(np.int64) * numbers(x)).reshape(3, -1, RUN).sum(axis=2)
    np.testing.assert_array_equal(run_sums(stored, x, interpret=True), stored.factor * expected)


@pytest.mark.parametrize("part", [0, 1])
@hypothesis.given(hnp.arrays(np.int8, (3, 8 * RUN), elements=st.integers(-8, 7)), FLOATS)
def test_products_with_nibbles_are_exact(part, weights, values):
    x = fixed_point(jnp.asarray(values), interpret=True)
    packed = np.asarray(pk.pack_int4(jnp.asarray(weights)))
    stored = bytes_of(jnp.asarray(packed.view(np.int32)), "int4", part)
    of_part = np.split(weights, 2, axis=1)[part].astype(np.int64)
    expected = (of_part * numbers(x)).reshape(3, -1, RUN).sum(axis=2)
    np.testing.assert_array_equal(run_sums(stored, x, interpret=True), stored.factor * expected)


def test_the_largest_sums_do_not_overflow():
    x = fixed_point(jnp.full((RUN,), -5.0), interpret=True)
    worst = {"int8": np.full((1, RUN), -128, np.int8), "int4": np.full((1, RUN), -1, np.int8)}
    for format, part, number in (("int8", 0, -128), ("int4", 0, 7), ("int4", 1, 7)):
        stored = bytes_of(jnp.asarray(worst[format].view(np.int32)), format, part)
        found = run_sums(stored, x, interpret=True)
        np.testing.assert_array_equal(found, [[stored.factor * RUN * number * -32767]])


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
