"""Keys and values in 8 bits: a number is `stored * scale`, with a scale for each kv head of a layer."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from pallas_kernels.common import checks
from pallas_kernels.common.choose_tiles import current_device
from pallas_kernels.common.quantised import FORMATS, LARGEST

KV_FORMATS = ("fp8", "int8")
"""Of `FORMATS`, those that a KV cache may be stored in."""


def format_of(dtype: Any) -> str | None:
    """The name of an 8-bit dtype in `KV_FORMATS`, or None."""
    return next((name for name in KV_FORMATS if jnp.dtype(dtype) == FORMATS[name]), None)


def rounded(x: jax.Array, scale: jax.Array, dtype: Any, *, compiled: bool = False) -> jax.Array:
    """float32 numbers as they are stored: to the nearest, ties to even, and those that are too large as the largest.

    Args:
        x: float32. NaN becomes NaN in fp8 and 0 in int8. scale: float32, broadcasts to x.
        dtype: one of the 8-bit ones. compiled: whether a Triton kernel is being traced.
    """
    name = format_of(dtype)
    assert name is not None
    x, most = x * (1.0 / scale), LARGEST[name]
    x = jnp.where(x > most, most, jnp.where(x < -most, -most, x))  # a NaN passes
    if name == "fp8":
        return x.astype(dtype)
    x = jnp.where(x == x, x, 0.0)
    if not compiled:
        return jnp.round(x).astype(dtype)
    (whole,) = plt.elementwise_inline_asm(  # the backend has no rounding of its own
        "cvt.rni.s32.f32 $0, $1;", args=[x], constraints="=r,f", pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, jnp.int32)],
    )  # fmt: skip
    return whole.astype(dtype)


def check_scale(name: str, stored: jax.Array, scale: jax.Array | None) -> None:
    """Raises unless keys or values [P, K, Z, H], `name`, have a scale for each head where they are of 8 bits, and none
    elsewhere."""
    if format_of(stored.dtype) is None:
        if scale is not None:
            raise ValueError(f"{name}_scale: expected None beside {name} in {stored.dtype}, which is not quantised")
        return
    if scale is None:
        raise ValueError(
            f"{name}_scale: expected float32 [{stored.shape[1]}] beside {name} in {stored.dtype}, got None"
        )
    checks.shape(f"{name}_scale", scale, (stored.shape[1],), ", one for each kv head")
    checks.dtype_is(f"{name}_scale", scale, jnp.float32)
    values = checks.known(scale)
    if values is not None and not (values > 0).all():
        raise ValueError(f"{name}_scale: expected positive numbers, got {values.min()}")


def check_device(implementation: str, *stored: jax.Array) -> None:
    """Raises where kernels are to be compiled for a GPU that cannot convert what is stored."""
    device = current_device()
    if implementation == "triton" and not device.has_fp8:
        for name, array in zip("kv", stored, strict=True):
            if array.dtype == FORMATS["fp8"]:
                raise ValueError(f"cache.{name}: expected int8 or the dtype of q on {device.name}, which has no fp8")
