"""Scales that are searched for: never worse than min-max's, and what they are tried on is what is stored."""

import functools

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import pallas_kernels as pk
from tests.pallas_kernels.marks import slow
from tokenspeed.weights import rounding
from tokenspeed.weights.rounding import rounded

CASES = {
    "int4": ("int4", 32, True, 0.85),
    "int4-zeros": ("int4", 32, False, 0.97),
    "int8": ("int8", None, True, 1.0),
    "int8-zeros": ("int8", 64, False, 1.0),
    "fp8": ("fp8", None, True, 1.0),
}
"""Format, group, whether symmetric, and what share of min-max's error is left at most."""


def drawn(outputs=48, inputs=128):
    """Normal rows of very different sizes, one with an outlier, one of zeros, in bfloat16."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((outputs, inputs)) * np.exp(rng.uniform(-6, 0, (outputs, 1)))
    values[0, 5], values[1] = 9.0, 0.0
    return values.astype(ml_dtypes.bfloat16)


def errors(values, stored, scales, zeros):
    """Squared, of each group, in float64."""
    blocks = np.asarray(values, np.float64).reshape(*scales.shape, -1)
    stored = np.asarray(stored, np.float64).reshape(blocks.shape)
    points = 0 if zeros is None else np.asarray(zeros, np.float64)[..., None]
    return np.sum(((stored - points) * np.asarray(scales, np.float64)[..., None] - blocks) ** 2, axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", slow("float16"), slow("float32")])
@pytest.mark.parametrize("case", CASES)
def test_no_group_is_worse_than_min_max(case, dtype):
    format, group, symmetric, share = CASES[case]
    values = drawn()
    stored, scales, zeros = rounded(values, format, group=group, symmetric=symmetric, scale_dtype=dtype)
    assert stored.dtype == (ml_dtypes.float8_e4m3fn if format == "fp8" else np.int8) and scales.dtype == dtype
    plain = pk.quantise(jnp.asarray(values), format, group=group, symmetric=symmetric, scale_dtype=dtype)
    number = pk.unpack_int4(plain.values) if format == "int4" else plain.values
    before = errors(values, number, plain.scales, plain.zeros)
    after = errors(values, stored, scales, zeros)
    assert np.all(after <= before)
    assert np.sum(after) <= share * np.sum(before)
    if format == "int4":
        assert stored.min() >= -8 and stored.max() <= 7


def test_small_numbers_are_kept_where_scales_are_float16():
    """A scale below float16's least normal number is a coarse one, but not 0."""
    values = (1e-3 * np.random.default_rng(0).standard_normal((4, 64))).astype(np.float32)
    stored, scales, zeros = rounded(values, "int8", group=None, symmetric=True, scale_dtype="float16")
    assert np.all(scales > 0)
    assert np.all(
        errors(values, stored, scales, zeros) < 1e-3 * np.sum(values.astype(np.float64) ** 2, axis=-1)[:, None]
    )


def test_zeros_stay_zeros():
    for symmetric in (True, False):
        stored, scales, zeros = rounded(
            np.zeros((2, 8), np.float32), "int4", group=4, symmetric=symmetric, scale_dtype="bfloat16"
        )
        assert np.all(errors(np.zeros((2, 8)), stored, scales, zeros) == 0)


@pytest.mark.slow
def test_outputs_in_parts_are_the_same(monkeypatch):
    values = drawn()
    run = functools.partial(rounded, values, "int4", group=32, symmetric=False, scale_dtype="bfloat16")
    whole = run()
    monkeypatch.setattr(rounding, "NUMBERS_AT_A_TIME", 20 * 128)
    for one, other in zip(whole, run(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("count", [1, 96 * 8])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_has_no_scale(value, count):
    values = np.ones(96 * 8, np.float32)
    values[:count] = value
    with pytest.raises(ValueError, match="expected finite numbers whose scales fit float16"):
        rounded(values.reshape(96, 8), "int8", group=None, symmetric=True, scale_dtype="float16")
