"""Products of integer weights with activations that are integers too: four multiply-adds an instruction (`dp4a`).

Activations are rounded to 16-bit fixed point, a run of 16 neighbouring inputs (as many bytes of weights as a thread
loads at a time) with a scale of its own: off by at most 2^-16 of the largest of its run, where bfloat16 rounds each by
up to 2^-9 of itself and float16 by 2^-12. Each number is two bytes, `256 * high + low`, and a weight's byte is
multiplied with both. Sums of a run are exact in 32 bits: 16 * 128 * 32767 < 2^31. With 8 bits a number is one byte, and
half of the products are left.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plt

from pallas_kernels.common.quantised import OFFSET, RUN

WORD = 4
"""Bytes of a word of weights."""
LARGEST = {16: 32767, 8: 127}
"""Of activations, by their bits."""
TINY = (127 - 100) << 23
"""The bits of 2^-100, which the largest number of a run is taken to be at least, so that it can be divided by."""
ROUNDING = 1.5 * 2.0**23
"""Added to a float, it leaves it rounded to a whole number, in two's complement in the lowest bits."""


class FixedPoint(NamedTuple):
    """Activations [I] as integers.

    Attributes:
        high, low: int32 [I / WORD], four bytes each, the first input's the lowest; signed and unsigned. Of 8 bits there
            are no low ones.
        totals: int32 [I / WORD], the sum of the four numbers.
        scales: float32 [I / RUN], what a number is to be multiplied with.
    """

    high: jax.Array
    low: jax.Array | None
    totals: jax.Array
    scales: jax.Array

    @property
    def sums(self) -> jax.Array:
        """float32 [I / RUN]: of what the numbers of a run stand for."""
        return jnp.sum(self.totals.reshape(-1, RUN // WORD), axis=1).astype(jnp.float32) * self.scales


class Bytes(NamedTuple):
    """A weight's numbers as bytes, each `factor * (number + offset)`.

    Attributes:
        words: int32 [N, I / WORD]. signed: whether the bytes are.
    """

    words: jax.Array
    signed: bool
    offset: int
    factor: int


def fixed_point(x: jax.Array, bits: int = 16, *, interpret: bool) -> FixedPoint:
    """Rounds activations, float32 [I], to so many bits; a run that is not finite has no finite scale."""
    runs = x.reshape(-1, RUN)
    # By their bits, of which those of NaN are the largest: the hardware's maximum of floats leaves NaN out.
    sizes = jnp.max(lax.bitcast_convert_type(runs, jnp.int32) & 0x7FFFFFFF, axis=1)
    most = lax.bitcast_convert_type(jnp.maximum(sizes, TINY), jnp.float32)
    numbers = lax.bitcast_convert_type(runs * (LARGEST[bits] / most)[:, None] + ROUNDING, jnp.int32)
    low, high = _planes(numbers.reshape(-1, WORD), interpret)
    if bits == 8:
        low, high = None, low
    totals = _product(jnp.full_like(high, 0x01010101), high, low, 0, signed=True, interpret=interpret)
    return FixedPoint(high=high, low=low, totals=totals, scales=most * (1 / LARGEST[bits]))


def bytes_of(words: jax.Array, format: str, part: int) -> Bytes:
    """A weight's bytes, or the nibbles of them that hold one part of the inputs, unpacked by one instruction.

    Args:
        words: see `WeightBlock.words`. format: 'int8' or 'int4'. part: of int4, 0 for the low nibbles, 1 for the high.
    """
    if format == "int8":
        return Bytes(words, signed=True, offset=0, factor=1)
    if part == 0:
        return Bytes(words & jnp.int32(0x0F0F0F0F), signed=False, offset=OFFSET, factor=1)
    return Bytes(words & jnp.int32(-0x0F0F0F10), signed=False, offset=OFFSET, factor=16)


def run_sums(weight: Bytes, x: FixedPoint, *, interpret: bool) -> jax.Array:
    """int32 [N, I / RUN], exact: the products of a weight's numbers, times their factor, with x's, summed up by run."""
    shape = weight.words.shape
    high, low = (None if plane is None else jnp.broadcast_to(plane[None, :], shape) for plane in (x.high, x.low))
    less: Any = 0
    if weight.offset:
        less = jnp.broadcast_to((x.totals * (-weight.factor * weight.offset))[None, :], shape)
    sums = _product(weight.words, high, low, less, signed=weight.signed, interpret=interpret)
    return jnp.sum(sums.reshape(shape[0], -1, RUN // WORD), axis=2)


def _product(a: jax.Array, high: Any, low: Any, c: Any, *, signed: bool, interpret: bool) -> jax.Array:
    """c plus the four products of the bytes of a with the numbers that one byte or two make."""
    if low is None:
        return _dot4(a, high, jnp.zeros_like(a) + c, (signed, True), interpret)
    sums = _dot4(a, high, jnp.zeros_like(a), (signed, True), interpret) * 256 + c
    return _dot4(a, low, sums, (signed, False), interpret)


def _planes(quads: jax.Array, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """int32 [W, WORD], of which the lowest two bytes count, as words [W] of the lowest bytes, and of the others."""
    column = lax.broadcasted_iota(jnp.int32, quads.shape, 1)
    first, second = (
        jnp.sum(jnp.where(column == i, quads & 0xFFFF, jnp.where(column == i + 1, quads << 16, 0)), axis=1)
        for i in (0, 2)
    )
    if interpret:
        even = first & 0xFF | (first >> 8) & 0xFF00, second & 0xFF | (second >> 8) & 0xFF00
        odd = (first >> 8) & 0xFF | (first >> 16) & 0xFF00, (second >> 8) & 0xFF | (second >> 16) & 0xFF00
        return even[0] | even[1] << 16, odd[0] | odd[1] << 16
    return (
        _assembly("prmt.b32 $0, $1, $2, 0x6420;", first, second),
        _assembly("prmt.b32 $0, $1, $2, 0x7531;", first, second),
    )


def _dot4(a: jax.Array, b: jax.Array, c: jax.Array, signed: tuple[bool, bool], interpret: bool) -> jax.Array:
    """c plus the four products of the bytes of a and b, which are signed or not; int32 of one shape."""
    if interpret:
        shift_right = [jnp.right_shift if one else lax.shift_right_logical for one in signed]
        for left in (24, 16, 8, 0):
            c = c + shift_right[0](a << left, jnp.full_like(a, 24)) * shift_right[1](b << left, jnp.full_like(b, 24))
        return c
    kinds = ".".join("s32" if one else "u32" for one in signed)
    return _assembly(f"dp4a.{kinds} $0, $1, $2, $3;", a, b, c)


def _assembly(instruction: str, *words: jax.Array) -> jax.Array:
    """One instruction for each element: int32 of the shape that the words have."""
    result: Any = jax.ShapeDtypeStruct(words[0].shape, jnp.int32)
    (found,) = plt.elementwise_inline_asm(
        instruction, args=words, constraints=",".join(["=r"] + ["r"] * len(words)), pack=1, result_shape_dtypes=[result]
    )
    return found
