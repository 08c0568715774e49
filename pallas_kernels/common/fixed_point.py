"""Activation rows in fixed point between kernels: rounded where they are made, not by each program that reads them.

What they are rounded to is as in `integer_dots`. A run's bytes are neighbours in memory, so that a thread loads a plane
of the run whose weights it has in one instruction: nothing has to change threads.
"""

import dataclasses
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.common import checks, hooks
from pallas_kernels.common.blocks import Span, scatter
from pallas_kernels.common.integer_dots import LARGEST, TINY, WORD, Runs, nearest, nearest_in_kernels
from pallas_kernels.common.quantised import RUN
from pallas_kernels.common.stream_tiles import StreamShape, Tiles


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedPointRows:
    """Activation rows in fixed point, as vectors multiply them with integer weights; a pytree.

    No array: what does not take them says so, as it does of any other object.

    Attributes:
        numbers: int8 [B, planes, D]: their high bytes, then their low ones (without a sign); of 8 bits one plane.
        runs: int32 [B, D / 16, 2]: of 16 neighbours the bits of their float32 scale, and the sum of their numbers.
        dtype: of the activations that they stand for. Static.
    """

    numbers: jax.Array
    runs: jax.Array
    dtype: np.dtype = dataclasses.field(metadata=dict(static=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, D], of the rows that they stand for."""
        return (*self.numbers.shape[-3:-2], *self.numbers.shape[-1:])  # of any rank, as yet unchecked

    @property
    def bits(self) -> int:
        """Of a number."""
        return 8 * self.numbers.shape[-2]


Rows = jax.Array | FixedPointRows


class FixedPointRefs(NamedTuple):
    """`FixedPointRows` in a kernel."""

    numbers: Any
    runs: Any


def check(name: str, x: Rows, expected: tuple) -> None:
    """Raises unless x is an array of the expected shape, or arrays that go together as such rows in fixed point.

    Args:
        expected: of two axes, as in `checks.shape`.
    """
    if not isinstance(x, FixedPointRows):
        return checks.shape(name, x, expected)
    checks.shape(f"{name}.numbers", x.numbers, ("B", "planes", "D"))
    rows, planes, width = x.numbers.shape
    if planes > 2 or width % RUN:
        got = list(x.numbers.shape)
        raise ValueError(f"{name}.numbers: expected 1 or 2 planes of a multiple of {RUN} numbers, got {got}")
    checks.dtype_is(f"{name}.numbers", x.numbers, jnp.int8)
    checks.shape(f"{name}.runs", x.runs, (rows, width // RUN, 2))
    checks.dtype_is(f"{name}.runs", x.runs, jnp.int32)
    checks.one_of_dtypes(f"{name}.dtype", x.dtype, checks.DTYPES)
    checks.shape(name, jax.ShapeDtypeStruct(x.shape, x.dtype), expected)


def check_bits(name: str, bits: Any) -> int | None:
    """Returns bits, or raises unless they are those of a fixed point, or None."""
    if bits is None:
        return None
    if isinstance(bits, bool) or not isinstance(bits, Integral) or bits not in LARGEST:
        raise ValueError(f"{name}: expected None, 16 or 8, got {checks.described(bits)}")
    return int(bits)


def check_use(name: str, x: FixedPointRows, shape: StreamShape) -> None:
    """Raises unless a weight of this shape is multiplied with such rows, by vectors."""
    if not shape.in_integers:
        raise ValueError(
            f"{name}: rows in fixed point need int8 or int4 weights in whole runs of {RUN}, of 16-bit or 8-bit "
            "activations"
        )
    if x.bits != shape.activation_bits:
        raise ValueError(f"{name}: expected numbers of {shape.activation_bits} bits for this weight, got {x.bits}")


def bits_for(shape: StreamShape, tiles: Tiles) -> int | None:
    """Bits of the fixed point in which a kernel takes its activations; None where it takes floats."""
    return shape.activation_bits if shape.in_integers and not tiles.mma else None


def inputs(x: Rows) -> dict[str, jax.Array | None]:
    """Of a launch's inputs those of its activations, by name."""
    return dict(x=x.numbers, x_runs=x.runs) if isinstance(x, FixedPointRows) else dict(x=x, x_runs=None)


def refs_of(refs: Any) -> Any:
    """Those that `inputs` gave names in a launch."""
    return refs.x if refs.x_runs is None else FixedPointRefs(refs.x, refs.x_runs)


def to_fixed_point(x: jax.Array, bits: int = 16, *, dtype: Any = None) -> FixedPointRows:
    """Rounds rows [B, D], any float dtype, D a multiple of 16; the plain form of what kernels do.

    There is no gradient: differentiating raises.

    Args:
        bits: 16 or 8. dtype: that the rows are to stand for, one of `DTYPES`; None for x's.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it.
    """
    checks.shape("x", x, ("B", "D"))
    checks.floating("x", x)
    if x.shape[1] % RUN:
        raise ValueError(f"x: expected a multiple of {RUN} columns, got {x.shape[1]}")
    if bits is None or check_bits("bits", bits) is None:
        raise ValueError("bits: expected 16 or 8, got None")
    dtype = checks.float_dtype("x", x) if dtype is None else checks.one_of_dtypes("dtype", dtype, checks.DTYPES)
    planes, *runs = _rounded(_without_gradient(x).astype(jnp.float32).reshape(len(x), -1, RUN), bits, nearest)
    return FixedPointRows(
        numbers=jnp.stack([plane.reshape(x.shape) for plane in planes], axis=1),
        runs=jnp.stack(runs, axis=-1),
        dtype=jnp.dtype(dtype),
    )


@jax.custom_jvp
def _without_gradient(x: jax.Array) -> jax.Array:
    return x


@_without_gradient.defjvp
def _no_gradient(primals, tangents):
    """Integers pass none: it would be 0, and nothing would say so."""
    del primals, tangents
    raise TypeError("fixed_point: no gradient passes activations in fixed point; ask for floats with fixed_point=None")


def refuse_gradient(results: Any) -> None:
    """Raises, of a pytree of results that are being differentiated, if there are rows in fixed point among them."""
    found = jax.tree.leaves(results, is_leaf=lambda one: isinstance(one, FixedPointRows))
    if any(isinstance(one, FixedPointRows) for one in found):
        _no_gradient((), ())


def to_floats(x: Rows) -> jax.Array:
    """Rows [B, D] of any float dtype as they are, or those that fixed point stands for, of their dtype.

    Raises:
        ValueError, TypeError: x is neither; the message says of what shape or dtype it is.
    """
    check("x", x, ("B", "D"))
    checks.floating("x", x)
    if not isinstance(x, FixedPointRows):
        return x
    planes = x.numbers.astype(jnp.int32)
    whole = planes[:, 0] if x.bits == 8 else 256 * planes[:, 0] + (planes[:, 1] & 0xFF)
    scales = lax.bitcast_convert_type(x.runs[..., 0], jnp.float32)
    return (whole * jnp.repeat(scales, RUN, axis=-1)).astype(x.dtype)


def _rounded(
    runs: jax.Array, bits: int, whole: Callable[[jax.Array], jax.Array]
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """Of float32 [..., RUN]: planes, int8 of that shape, the bits of scales, and totals, int32 [...].

    Each number by itself, for no thread has a run where they are made: `integer_dots.fixed_point` is for those that do.

    Args:
        whole: `integer_dots.nearest`, or the form of it that kernels take.
    """
    # By their bits, of which those of NaN are the largest.
    largest = jnp.max(lax.bitcast_convert_type(runs, jnp.int32) & 0x7FFFFFFF, axis=-1)
    scales = lax.bitcast_convert_type(jnp.maximum(largest, TINY), jnp.float32) * (1 / LARGEST[bits])
    numbers = whole(runs * (1 / scales)[..., None])
    planes = [numbers] if bits == 8 else [numbers >> 8, numbers]
    totals = jnp.sum(numbers, axis=-1, dtype=jnp.int32)
    return [plane.astype(jnp.int8) for plane in planes], lax.bitcast_convert_type(scales, jnp.int32), totals


def load(refs: FixedPointRefs, row: int, inputs: Span, *, interpret: bool) -> Runs:
    """The inputs of a step, in whole runs; those outside count as 0."""
    planes = refs.numbers.shape[1]
    first = lax.div(jnp.int32(inputs.start), jnp.int32(RUN))
    each = jnp.arange(inputs.size // RUN, dtype=jnp.int32)
    inside = None
    if inputs.limit is not None:  # what lies behind is replaced by the last run, with a scale of 0
        last = (inputs.limit - inputs.start) // RUN - 1
        inside, each = each <= last, jnp.minimum(each, last)
    words = [
        hooks.load_vectors(
            refs.numbers, (row, plane, first * RUN), (0, 0, each * RUN), RUN // WORD, interpret=interpret
        )
        for plane in range(planes)
    ]
    scales, totals = hooks.load_vectors(refs.runs, (row, first, 0), (0, each, 0), 2, interpret=interpret)
    scales = lax.bitcast_convert_type(scales, jnp.float32)
    if inside is not None:
        scales = jnp.where(inside, scales, 0.0)
    return Runs(high=words[0], low=words[1] if planes == 2 else None, scales=scales, totals=totals)


def made(bits: int | None, width: int, tiles: Tiles) -> int | None:
    """Bits of the fixed point that programs of so many neighbours leave rows of that width in; None for floats.

    Args:
        bits: that they are asked for, or None.
    """
    return bits if width % RUN == 0 and tiles.block_n % RUN == 0 and not tiles.mma else None


def outputs(rows: int, width: int, bits: int) -> list[jax.ShapeDtypeStruct]:
    """Of a launch that makes rows [rows, width]: numbers and runs."""
    numbers = jax.ShapeDtypeStruct((rows, bits // 8, width), jnp.int8)
    return [numbers, jax.ShapeDtypeStruct((rows, width // RUN, 2), jnp.int32)]


def made_of(results: list[jax.Array], dtype: Any) -> Rows:
    """Of the results of a launch for rows: those of `outputs`, or rows of floats."""
    if len(results) == 1:
        return results[0]
    numbers, runs = results
    return FixedPointRows(numbers=numbers, runs=runs, dtype=jnp.dtype(dtype))


def save(refs: Sequence, row: Any, first: Any, values: jax.Array, limit: Any, *, interpret: bool) -> None:
    """Rounds neighbours of a row, from `first` on, and stores those below the limit; all in whole runs.

    Args:
        refs: of `outputs`. row: a scalar or [1]. values: float32, in rows that follow each other in memory.
    """
    numbers_ref, runs_ref = refs
    whole = nearest if interpret else nearest_in_kernels  # what is interpreted on a GPU, XLA compiles
    planes, *runs = _rounded(values.reshape(-1, RUN), 8 * numbers_ref.shape[1], whole)
    at = first + RUN * lax.broadcasted_iota(jnp.int32, planes[0].shape, 0)
    at += lax.broadcasted_iota(jnp.int32, planes[0].shape, 1)
    for plane, value in enumerate(planes):
        scatter(numbers_ref, row, plane, at, value=value, mask=at < limit, interpret=interpret)
    at = lax.div(jnp.int32(first), jnp.int32(RUN)) + jnp.arange(runs[0].size, dtype=jnp.int32)
    for i, value in enumerate(runs):
        scatter(runs_ref, row, at, i, value=value, mask=RUN * at < limit, interpret=interpret)
