"""Stored numbers of a quantised weight as floats, in registers: a few instructions for four of them.

The backend's own conversions of 8-bit integers take four times as long as its arithmetic. Here a byte becomes the low
bits of a float whose exponent is known, which is exact; what that exponent adds is taken off again.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from pallas_kernels.common.quantised import OFFSET

NIBBLES = ("and.b32 t, $2, 0x0f0f0f0f;", "shr.b32 t, $2, 4; and.b32 t, t, 0x0f0f0f0f;")
"""Four bytes' low nibbles, and their high ones, as the bytes of t."""
FLIPPED = "xor.b32 t, ${word}, 0x80808080;"
"""Four signed bytes with 128 added."""
EXPONENTS = {"bfloat16": (0x43, 128), "float16": (0x64, 1024)}
"""The high byte of a float whose lowest bit is 1, and its value with no other bit set; bfloat16 then holds 7 bits."""


def unpack(values: jax.Array, format: str, part: int, dtype: str, *, interpret: bool) -> jax.Array:
    """What a tile stores, without scales and zero points.

    Args:
        values: [N, K] of a `QuantisedWeight`. format: its format.
        part: of int4, 0 for the low nibbles and 1 for the high ones; else 0. dtype: of the result.

    Returns:
        [N, K] of `dtype`, exact.
    """
    if format == "fp8":
        return values.astype(dtype)
    if not interpret and format == "int4" and dtype in EXPONENTS:
        return _packed(_int4(part, dtype), values, dtype)
    if not interpret and format == "int8":
        if dtype == "float16":
            return _packed(_int8_half(), values, dtype)
        return _packed(_int8(dtype), values, dtype)
    if format == "int8":
        return values.astype(dtype)
    stored = values.astype(jnp.int32)
    nibbles = stored & 0xF if part == 0 else stored >> 4
    return (nibbles - OFFSET).astype(dtype)


def _packed(assembly: str, values: jax.Array, dtype: str) -> jax.Array:
    """Four neighbouring bytes at a time."""
    words = 4 * jnp.dtype(dtype).itemsize // 4
    constraints = ",".join(["=r"] * words + ["r"])
    result = jax.ShapeDtypeStruct(values.shape, jnp.dtype(dtype))
    (found,) = plt.elementwise_inline_asm(
        assembly, args=[values], constraints=constraints, pack=4, result_shape_dtypes=[result]
    )
    return found


def _halves(dtype: str, offset: int) -> str:
    """The bytes of t as four floats of 16 bits, less their exponent's value and `offset`."""
    exponent, value = EXPONENTS[dtype]
    kind = "bf16x2" if dtype == "bfloat16" else "f16x2"
    off = int(jnp.asarray(value + offset, dtype).view(jnp.uint16))
    return (
        f"mov.b32 c, 0x{exponent * 0x01010101:08x}; prmt.b32 a, t, c, 0x4140; prmt.b32 b, t, c, 0x4342; "
        f"mov.b32 c, 0x{off * 0x00010001:08x}; sub.{kind} $0, a, c; sub.{kind} $1, b, c;"
    )


def _int4(part: int, dtype: str) -> str:
    return f"{{ .reg .b32 t, a, b, c; {NIBBLES[part]} {_halves(dtype, OFFSET)} }}"


def _int8_half() -> str:
    return f"{{ .reg .b32 t, a, b, c; {FLIPPED.format(word=2)} {_halves('float16', 128)} }}"


def _int8(dtype: str) -> str:
    """By way of float32, whose bits hold a byte in every dtype; bfloat16 has room for 8 bits and a sign."""
    whole = dtype == "float32"
    names = [f"${i}" for i in range(4)] if whole else [f"f{i}" for i in range(4)]
    floats = " ".join(
        f"prmt.b32 a, t, c, 0x754{i}; sub.f32 {name}, a, 0f4B000080;" for i, name in enumerate(names)
    )  # 2^23 + 128
    last = "" if whole else "cvt.rn.bf16x2.f32 $0, f1, f0; cvt.rn.bf16x2.f32 $1, f3, f2;"
    registers = ".reg .b32 t, a, c;" if whole else ".reg .b32 t, a, c; .reg .f32 f0, f1, f2, f3;"
    return f"{{ {registers} {FLIPPED.format(word=4 if whole else 2)} mov.b32 c, 0x4B000000; {floats} {last} }}"
