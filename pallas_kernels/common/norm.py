"""RMSNorm as a kernel of its own, ahead of a kernel that streams weights past tensor cores.

A tensor-core product takes its operands from shared memory, where asynchronous copies put x as it lies in memory.
Normed in the loop, x would pass through registers in every block, in every program anew, and break that ring: about 5
times as long as the weights take on an H200, far more than one small launch. The vector form needs none (see `stream`),
and rows that come weighted need none in either form (see `weighted`).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.common.blocks import Span, load, store
from pallas_kernels.common.launch import launch, let_next_start
from pallas_kernels.common.tiles import Tiles, power_of_two_at_least
from pallas_kernels.common.weighted import Weighted

ELEMENTS_A_THREAD = 8
"""One 16-byte load of x in two bytes each."""
MAX_WARPS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * (weight + offset)."""

    eps: float
    offset: float = 0.0


class Left(NamedTuple):
    """What a streaming kernel has yet to do of a norm.

    Attributes:
        norm: None for nothing.
        x: the rows to stream past, [M, I].
        weight: [I], to be multiplied in, or None; then the squares for the factor are gathered on the way.
        squares: float32 [M, parts], to be summed up for the factor, or None.
    """

    norm: Norm | None
    x: jax.Array
    weight: jax.Array | None = None
    squares: jax.Array | None = None

    def inputs(self) -> dict[str, jax.Array | None]:
        """Of the launch, by the names that `Stream` has them under."""
        return dict(x=self.x, norm=self.weight, squares=self.squares)


def ahead(
    norm: Norm, x: jax.Array | Weighted, weight: jax.Array | None, tiles: Tiles, dtype: str, *, interpret: bool
) -> Left:
    """What is left of a norm for a streaming kernel with these tiles; with tensor cores it is done here, to `dtype`."""
    if isinstance(x, Weighted):
        return Left(norm, x.x, squares=x.squares)
    assert weight is not None  # checked with the arguments
    if not tiles.mma:
        return Left(norm, x, weight)
    return Left(None, rms_norm(norm, x, weight, dtype, interpret=interpret))


def rms_norm(norm: Norm, x: jax.Array, weight: jax.Array, dtype: str, *, interpret: bool) -> jax.Array:
    """x [M, I] normed by weight [I], rounded to `dtype` as the reference does; one program a row."""
    rows, inputs = x.shape
    block = power_of_two_at_least(inputs)
    columns = Span(0, block, None if block == inputs else inputs)

    def kernel(refs, y_ref):
        let_next_start(interpret)
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
