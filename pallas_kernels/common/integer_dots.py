"""Products of integer weights with activations that are integers too: four multiply-adds an instruction (`dp4a`).

Activations are rounded to 16-bit fixed point, a run of 16 neighbouring inputs (as many bytes of weights as a thread
loads at a time) with a scale of its own: off by at most 2^-16 of the largest of its run, where bfloat16 rounds each by
up to 2^-9 of itself and float16 by 2^-12. Each number is two bytes, `256 * high + low`, and a weight's byte is
multiplied with both. With 8 bits a number is one byte, and half of the products are left.

Sums of a run are exact: with bytes of up to 255 all that is added up on the way is below 2^28.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plt

from pallas_kernels.common import hooks
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
        scales: float32 [I / RUN], what a number is to be multiplied with.
    """

    high: jax.Array
    low: jax.Array | None
    scales: jax.Array


class Runs(NamedTuple):
    """The same in runs, as `FixedPointRows` has them in memory.

    Attributes:
        high, low: for each word of a run int32 [I / RUN]. scales: as above. totals: int32 [I / RUN], see `totals`.
    """

    high: list[jax.Array]
    low: list[jax.Array] | None
    scales: jax.Array
    totals: jax.Array


class Bytes(NamedTuple):
    """A weight's numbers as bytes, each `factor * (number + offset)`.

    Attributes:
        words: int32 [N, I / WORD]. signed: whether the bytes are.
    """

    words: jax.Array
    signed: bool
    offset: int
    factor: int


def nearest(x: jax.Array) -> jax.Array:
    """Floats of at most 16 bits before the point, rounded to whole numbers, the even one of two as near; int32."""
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN).astype(jnp.int32)


def nearest_in_kernels(x: jax.Array) -> jax.Array:
    """The same of float32, in fewer instructions, for kernels alone: where XLA stores the lowest byte of such bits,
    ptxas 13.0 converts the float that they are (`st.global.b8` of its register becomes `F2IP.U8.F32`)."""
    return lax.bitcast_convert_type(x + ROUNDING, jnp.int32) << 16 >> 16


def fixed_point(x: jax.Array, bits: int = 16, *, interpret: bool) -> FixedPoint:
    """Rounds activations, float32 [I], to so many bits; a run that is not finite has no finite scale."""
    four = _columns(lax.bitcast_convert_type(x, jnp.int32))
    largest = jnp.max(_largest(four, interpret).reshape(-1, RUN // WORD), axis=1)
    scales = lax.bitcast_convert_type(jnp.maximum(largest, TINY), jnp.float32) * (1 / LARGEST[bits])
    factors = _reciprocals(scales, interpret)
    factors = jnp.broadcast_to(factors[:, None], (factors.size, RUN // WORD)).reshape(-1)
    rounding = jnp.full_like(factors, ROUNDING)
    multiply_add = (lambda a, b, c: a * b + c) if interpret else hooks.multiply_add
    numbers = [multiply_add(lax.bitcast_convert_type(one, jnp.float32), factors, rounding) for one in four]
    numbers = [lax.bitcast_convert_type(one, jnp.int32) for one in numbers]
    low = _gathered(numbers, 0, interpret)
    if bits == 8:
        return FixedPoint(high=low, low=None, scales=scales)
    return FixedPoint(high=_gathered(numbers, 1, interpret), low=low, scales=scales)


def bytes_of(words: jax.Array, format: str, part: int, *, interpret: bool) -> Bytes:
    """A weight's bytes, or the nibbles of them that hold one part of the inputs, unpacked by one instruction.

    Args:
        words: see `WeightBlock.words`. format: 'int8' or 'int4'. part: of int4, 0 for the low nibbles, 1 for the high.
    """
    if format == "int8":
        return Bytes(words, signed=True, offset=0, factor=1)
    if part == 0:
        return Bytes(words & jnp.int32(0x0F0F0F0F), signed=False, offset=OFFSET, factor=1)
    # With its upper bit turned over a nibble is less by the offset, and 16 times as large as a byte with a sign.
    mask, signs = (jnp.full_like(words, constant) for constant in (-0x0F0F0F10, -0x7F7F7F80))
    if interpret:
        high = words & mask ^ signs
    else:  # with constants it would be two instructions
        high = _assembly("lop3.b32 $0, $1, $2, $3, 0x6A;", words, mask, signs)
    return Bytes(high, signed=True, offset=0, factor=16)


def run_sums(weight: Bytes, x: FixedPoint | Runs, *, interpret: bool) -> jax.Array:
    """int32 [N, I / RUN], exact: the products of a weight's numbers, times their factor, with x's, summed up by run."""
    words, total = _columns(weight.words), None
    if isinstance(x, Runs):
        shape = words[0].shape
        high, low = ([_of_outputs(word, shape) for word in plane] if plane else None for plane in (x.high, x.low))
        total = _of_outputs(x.totals, shape)
    else:
        planes = _for_outputs(x, weight.words.shape, interpret)
        high, low = (None if plane is None else _columns(plane) for plane in planes)
    start = jnp.zeros_like(words[0])
    if weight.offset:
        if total is None:  # a thread's outputs share it, and it has the bytes of x anyway
            total = _totals(high, low, interpret)
        start = total * (-weight.factor * weight.offset)
    return _sums(words, high, low, start, weight.signed, interpret)


def totals(x: FixedPoint | Runs, *, interpret: bool) -> jax.Array:
    """int32 [I / RUN]: the sums of x's numbers by run."""
    if isinstance(x, Runs):
        return x.totals
    by_word = _totals([x.high], None if x.low is None else [x.low], interpret)
    return jnp.sum(by_word.reshape(-1, RUN // WORD), axis=1, dtype=jnp.int32)


def _totals(high, low, interpret: bool) -> jax.Array:
    """Of each run, whose words these are."""
    ones = jnp.full_like(high[0], 0x01010101)
    return _sums([ones] * len(high), high, low, jnp.zeros_like(ones), True, interpret)


def _sums(words, high, low, start, signed: bool, interpret: bool) -> jax.Array:
    """start plus the products of the bytes of words with the numbers that one byte or two make."""
    if low is None:
        return _chain(words, high, start, (signed, True), interpret)
    above = _chain(words, high, jnp.zeros_like(start), (signed, True), interpret)
    return above * 256 + _chain(words, low, start, (signed, False), interpret)


def _chain(a, b, c, signed: tuple[bool, bool], interpret: bool) -> jax.Array:
    for pair in zip(a, b, strict=True):
        c = _dot4(*pair, c, signed, interpret)
    return c


def _for_outputs(x: FixedPoint, shape: tuple[int, ...], interpret: bool) -> tuple[jax.Array, jax.Array | None]:
    """High words and low ones for every output, [N, I / WORD]."""
    if x.low is None:
        return _of_outputs(x.high, shape), None
    if interpret:
        return _of_outputs(x.high, shape), _of_outputs(x.low, shape)
    # Threads that round x hand it to those that multiply it: in one go where both words are one number of 64 bits.
    both = lax.broadcast_in_dim(_assembly("mov.b64 $0, {$1, $2};", x.high, x.low, dtype="int64"), shape, (1,))
    high, low = (_assembly(f"{{ .reg .b32 t; mov.b64 {{{half}}}, $1; }}", both) for half in ("$0, t", "t, $0"))
    return high, low


def _of_outputs(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(x[None, :], shape)


def _columns(x: jax.Array) -> list[jax.Array]:
    """Of int32 [..., 4 J] the first of every four of the last axis, [..., J], the second, the third and the fourth.

    It takes no instruction where a thread has all four, and is right where it does not.
    """
    fours = x.reshape(*x.shape[:-1], -1, 4)
    column = lax.broadcasted_iota(jnp.int32, fours.shape, x.ndim)
    return [jnp.sum(jnp.where(column == i, fours, 0), axis=-1, dtype=jnp.int32) for i in range(4)]


def _largest(floats: list[jax.Array], interpret: bool) -> jax.Array:
    """The bits of the largest absolute number of four, as bits, one after the other; NaN where one is."""
    if interpret:  # by their bits, of which those of NaN are the largest
        a, b, c, d = (one & 0x7FFFFFFF for one in floats)
        return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    return _assembly(
        "{ .reg .f32 a, b, c, d; abs.f32 a, $1; abs.f32 b, $2; abs.f32 c, $3; abs.f32 d, $4; "
        "max.NaN.f32 a, a, b; max.NaN.f32 c, c, d; max.NaN.f32 $0, a, c; }",
        *floats,
    )


def _reciprocals(x: jax.Array, interpret: bool) -> jax.Array:
    """Of float32 that are neither denormal nor so large that their reciprocals are: a division would see to those."""
    if interpret:
        return 1 / x
    found = _assembly("rcp.approx.ftz.f32 $0, $1;", lax.bitcast_convert_type(x, jnp.int32))
    return lax.bitcast_convert_type(found, jnp.float32)


def _gathered(numbers: list[jax.Array], byte: int, interpret: bool) -> jax.Array:
    """Words of one byte, the lowest or the next, of each of four numbers."""
    if interpret:
        a, b, c, d = ((one >> 8 * byte) & 0xFF for one in numbers)
        return a | b << 8 | c << 16 | d << 24
    # The lower halves first, in instructions that both bytes share.
    halves = [_assembly("prmt.b32 $0, $1, $2, 0x5410;", *pair) for pair in (numbers[:2], numbers[2:])]
    return _assembly(f"prmt.b32 $0, $1, $2, {('0x6420', '0x7531')[byte]};", *halves)


def _dot4(a: jax.Array, b: jax.Array, c: jax.Array, signed: tuple[bool, bool], interpret: bool) -> jax.Array:
    """c plus the four products of the bytes of a and b, which are signed or not; int32 of one shape."""
    if interpret:
        shift_right = [jnp.right_shift if one else lax.shift_right_logical for one in signed]
        for left in (24, 16, 8, 0):
            c = c + shift_right[0](a << left, jnp.full_like(a, 24)) * shift_right[1](b << left, jnp.full_like(b, 24))
        return c
    kinds = ".".join("s32" if one else "u32" for one in signed)
    return _assembly(f"dp4a.{kinds} $0, $1, $2, $3;", a, b, c)


def _assembly(instructions: str, *args: jax.Array, dtype: str = "int32") -> jax.Array:
    """Made of each element of the arguments, integers of one shape; the result is of dtype."""
    registers = {4: "r", 8: "l"}
    result: Any = jax.ShapeDtypeStruct(args[0].shape, jnp.dtype(dtype))
    constraints = [f"={registers[result.dtype.itemsize]}", *(registers[one.dtype.itemsize] for one in args)]
    (found,) = plt.elementwise_inline_asm(
        instructions, args=args, constraints=",".join(constraints), pack=1, result_shape_dtypes=[result]
    )
    return found
