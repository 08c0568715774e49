"""RMSNorm as a kernel of its own, ahead of a kernel that streams weights past tensor cores.

A tensor-core product takes its operands from shared memory, where asynchronous copies put x as it lies in memory.
Normed in the loop, x would pass through registers in every block, in every program anew, and break that ring. The
vector form norms on the way (see `stream`), and rows of a deferred norm need no launch in either form.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.common import fixed_point, quantised
from pallas_kernels.common.blocks import Span, load, store
from pallas_kernels.common.deferred_norm import DeferredNorm
from pallas_kernels.common.fixed_point import FixedPointRows, Rows
from pallas_kernels.common.launch import launch, launch_dependents
from pallas_kernels.common.stream_tiles import StreamShape, Tiles

ELEMENTS_A_THREAD = 8
"""One 16-byte load of x in two bytes each."""
MAX_WARPS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * (weight + offset)."""

    eps: float
    offset: float = 0.0


class Activations(NamedTuple):
    """What a streaming kernel reads beside its weight, and what it has yet to do of the norm.

    Attributes:
        norm: None for nothing.
        x: the rows to stream past, [M, I], floats or in fixed point.
        weight: of the norm, [I], to be multiplied in, or None; then the squares are gathered on the way.
        squares: of a deferred norm, float32 [M, parts], to be summed up for the factor, or None.
    """

    norm: Norm | None
    x: Rows
    weight: jax.Array | None = None
    squares: jax.Array | None = None

    def inputs(self) -> dict[str, jax.Array | None]:
        """Of the launch, by the names that `Stream` has them under."""
        return fixed_point.inputs(self.x) | dict(norm=self.weight, squares=self.squares)


def prenorm(
    norm: Norm,
    x: jax.Array | DeferredNorm,
    weight: jax.Array | None,
    tiles: Tiles,
    shape: StreamShape,
    *,
    interpret: bool,
) -> Activations:
    """The activations of a streaming kernel of this shape; for tensor cores they are normed here, to its dtype."""
    if isinstance(x, DeferredNorm):
        return Activations(norm, as_multiplied(x.x, tiles, shape), squares=x.squares)
    assert weight is not None  # checked with the arguments
    if not tiles.mma:
        return Activations(norm, x, weight)
    return Activations(None, as_multiplied(rms_norm(norm, x, weight, shape.dtype, interpret=interpret), tiles, shape))


def as_multiplied(x: Rows, tiles: Tiles, shape: StreamShape) -> Rows:
    """x [M, I] with 8 bits where the shape has so many and tensor cores, which multiply floats, are to see them.

    Raises:
        ValueError: x is in fixed point, and tensor cores are to multiply it.
    """
    if isinstance(x, FixedPointRows):
        if tiles.mma:
            raise ValueError("x: rows in fixed point are multiplied on vectors, expected tiles of mma=False, got True")
        return x
    return quantised.rounded(x) if tiles.mma and shape.activation_bits == 8 else x


def rms_norm(norm: Norm, x: jax.Array, weight: jax.Array, dtype: str, *, interpret: bool) -> jax.Array:
    """x [M, I] normed by weight [I], rounded to `dtype` as the reference does; one program a row."""
    rows, inputs = x.shape
    block = pl.next_power_of_2(inputs)
    columns = Span(0, block, None if block == inputs else inputs)

    def kernel(refs, y_ref):
        launch_dependents(interpret)
        row = pl.program_id(0)
        value = load(refs.x, row, columns, interpret=interpret).astype(jnp.float32)
        gain = load(refs.weight, columns, interpret=interpret).astype(jnp.float32) + norm.offset
        scale = lax.rsqrt(jnp.sum(value * value) / inputs + norm.eps)
        store(y_ref, row, columns, value=value * scale * gain, interpret=interpret)

    (y,) = launch(
        kernel,
        name="norm",
        grid=(rows,),
        inputs=dict(x=x, weight=weight),
        outputs=[jax.ShapeDtypeStruct(x.shape, dtype)],
        num_warps=max(1, min(MAX_WARPS, block // (32 * ELEMENTS_A_THREAD))),
        num_stages=1,
        interpret=interpret,
    )
    return y
