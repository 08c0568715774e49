"""Stored numbers of a quantised weight as floats, in registers: a few instructions for four of them.

The backend's own conversions of 8-bit integers take four times as long as its arithmetic. Here a byte becomes the low
bits of a float whose exponent is known, which is exact; what that exponent adds is taken off again.
"""

import jax
import jax.numpy as jnp
import numpy as np
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
        if interpret or dtype != "bfloat16":
            return values.astype(dtype)
        return _packed(_FP8, values, dtype)
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


_FP8 = (
    "{ .reg .b32 a, b, s, c; mov.b32 c, 0; prmt.b32 a, $2, c, 0x1404; prmt.b32 b, $2, c, 0x3424; "
    + " ".join(
        f"and.b32 s, {x}, 0x80008000; shr.b32 {x}, {x}, 4; and.b32 {x}, {x}, 0x07f007f0; or.b32 {x}, {x}, s;"
        for x in ("a", "b")
    )
    + " mov.b32 c, 0x7b807b80; mov.b32 s, 0x80008000; fma.rn.bf16x2 $0, a, c, s; fma.rn.bf16x2 $1, b, c, s; }"
)
"""Sign, exponent and mantissa of e4m3 at their places in bfloat16, times 2^120, by which its exponent is too low there.
NaN, which is refused where a checkpoint is read, becomes 480."""


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
    one, off = (
        int(np.asarray(x, jnp.dtype(dtype)).view(np.uint16)) * 0x00010001 for x in (1, -(value + offset))
    )  # fmt: skip
    kind = "bf16x2" if dtype == "bfloat16" else "f16x2"
    return (
        f"mov.b32 c, 0x{exponent * 0x01010101:08x}; prmt.b32 a, t, c, 0x4140; prmt.b32 b, t, c, 0x4342; "
        f"mov.b32 c, 0x{off:08x}; mov.b32 t, 0x{one:08x}; fma.rn.{kind} $0, a, t, c; fma.rn.{kind} $1, b, t, c;"
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
