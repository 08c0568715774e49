"""Rounds weights to few numbers with the least squared error: the scales are searched for, not only the largest's.

A group that is clipped a little has finer steps for all of its other numbers. For each group a grid of shrunk ranges is
tried, and the scale of the best is refitted by least squares to the integers that it gives, as long as that helps.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

RANGE = {
    "int4": (-8.0, 7.0),
    "int8": (-128.0, 127.0),
    "fp8": (-448.0, 448.0),
}
"""The least and the largest number that a format of `pallas_kernels.FORMATS` has."""
SHRINK = np.linspace(1.0, 0.7, 16, dtype=np.float32)
"""Of the range from the least to the largest number of a group; the first is min-max."""
SHIFTS = (0, -1, 1)
"""Of a zero point, beside the one that the range gives."""
REFITS = 4
MARGIN = 1e-6
"""How much less, relatively, a better error is: float32 sums tell no smaller difference."""
NUMBERS_AT_A_TIME = 1 << 25
"""Of a weight in float32; its outputs are independent, so that what a projection takes besides stays small."""


class _Fit(NamedTuple):
    error: jax.Array
    scales: jax.Array
    zeros: jax.Array | None


def rounded(
    values: np.ndarray, format: str, *, group: int | None, symmetric: bool, scale_dtype: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A weight in one of `pallas_kernels.FORMATS`.

    Args:
        values: [O, I], any float dtype. group: inputs that share a scale, a divisor of I; None for all of an output.
        symmetric: about 0, without zero points. scale_dtype: of the scales, to which they are rounded first.

    Returns:
        (int8 [O, I], int4 as -8 to 7, or float8_e4m3fn; scales [O, groups]; zero points int8 [O, groups] or None).

    Raises:
        ValueError: values are not finite, or scales are beyond `scale_dtype`.
    """
    outputs, inputs = values.shape
    options = dict(format=format, group=group or inputs, symmetric=symmetric, scale_dtype=jnp.dtype(scale_dtype))
    rows = max(1, NUMBERS_AT_A_TIME // inputs)
    found = [jax.device_get(_rounded(values[begin : begin + rows], **options)) for begin in range(0, outputs, rows)]
    stored, scales = (np.concatenate([one[i] for one in found]) for i in (0, 1))
    if not all(one[-1] for one in found) or not np.all(np.isfinite(scales.astype(np.float32))):
        raise ValueError(f"expected finite numbers whose scales fit {jnp.dtype(scale_dtype)}")
    return stored, scales, None if symmetric else np.concatenate([one[2] for one in found])


def restored(values: jax.Array, format: str, *, group: int | None, symmetric: bool, scale_dtype: Any) -> jax.Array:
    """What the numbers that `rounded` gives stand for: float32 [O, I]. The arguments are its; values may be traced."""
    blocks = values.astype(jnp.float32).reshape(values.shape[0], -1, group or values.shape[1])
    fit = _fitted(blocks, format, symmetric, scale_dtype)
    return _restored(blocks, fit, format).reshape(values.shape)


@functools.partial(jax.jit, static_argnames=("format", "group", "symmetric", "scale_dtype"))
def _rounded(values, format, group, symmetric, scale_dtype):
    blocks = values.astype(jnp.float32).reshape(values.shape[0], -1, group)
    fit = _fitted(blocks, format, symmetric, scale_dtype)
    stored = _stored(blocks, fit, format).astype(jnp.float8_e4m3fn if format == "fp8" else jnp.int8)
    return stored.reshape(values.shape), fit.scales, fit.zeros, jnp.all(jnp.isfinite(blocks))


def _stored(blocks, fit, format):
    """What the numbers of blocks [O, groups, size] are stored as, in float32."""
    whole = blocks / fit.scales.astype(jnp.float32)[..., None]
    if format == "fp8":
        return jnp.clip(whole, *RANGE[format]).astype(jnp.float8_e4m3fn).astype(jnp.float32)
    return jnp.clip(jnp.round(whole) + _spread(fit.zeros), *RANGE[format])


def _restored(blocks, fit, format):
    """What the numbers that are stored stand for, in float32."""
    return (_stored(blocks, fit, format) - _spread(fit.zeros)) * fit.scales.astype(jnp.float32)[..., None]


def _spread(zeros):
    return 0.0 if zeros is None else zeros.astype(jnp.float32)[..., None]


def _fitted(blocks, format, symmetric, scale_dtype):
    """The best fit of blocks [O, groups, size]: of each group the error, the scale and the zero point."""
    least, largest = RANGE[format]
    low, high = jnp.minimum(jnp.min(blocks, axis=-1), 0.0), jnp.maximum(jnp.max(blocks, axis=-1), 0.0)
    top = jnp.maximum(-low, high)

    def tried(scales, zeros):
        scales = scales.astype(scale_dtype)
        fit = _Fit(top, jnp.where(scales == 0, jnp.ones_like(scales), scales), zeros)
        return fit._replace(error=jnp.sum(jnp.square(_restored(blocks, fit, format) - blocks), axis=-1))

    def better(best, other):
        less = other.error < best.error * (1 - MARGIN)
        return jax.tree.map(lambda old, new: jnp.where(less, new, old), best, other)

    def clipped(shrink, shift):
        if symmetric:
            return tried(top * shrink / largest, None)
        scales = (high - low) * shrink / (largest - least)
        near = jnp.where(scales == 0, 1.0, scales).astype(scale_dtype).astype(jnp.float32)
        zeros = jnp.clip(jnp.round(least - low * shrink / near) + shift, least, largest)
        return tried(scales, zeros.astype(jnp.int8))

    def refitted(_, best):
        whole = _stored(blocks, best, format) - _spread(best.zeros)
        squares = jnp.sum(jnp.square(whole), axis=-1)
        scales = jnp.sum(whole * blocks, axis=-1) / jnp.where(squares == 0, 1.0, squares)
        return better(best, tried(jnp.where(scales > 0, scales, best.scales.astype(jnp.float32)), best.zeros))

    grid = np.array([(shrink, shift) for shift in (SHIFTS[:1] if symmetric else SHIFTS) for shrink in SHRINK])
    best, _ = jax.lax.scan(lambda best, one: (better(best, clipped(*one)), None), clipped(*grid[0]), grid[1:])
    return jax.lax.fori_loop(0, REFITS, refitted, best)
