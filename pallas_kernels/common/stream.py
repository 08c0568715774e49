"""The loop that every projection is made of: stream rows of weights past a few rows of activations.

One program owns `block_n` rows of the weight and all of the reduction axis, so no program waits for another. In the
vector form RMSNorm costs no pass of its own: the sum of squares is gathered while the weights stream by, and its
factor, one number per row of x, is applied to the finished sums (the norm's weight is applied to x on the way). In the
tensor-core form x comes normed, from a small launch ahead (`norm.ahead`).

Letters: M rows of x, R rows of the weight, C weights per row (2 where two rows belong together: the two halves of a
rotation, or gate and up), I the reduction axis.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.common import hooks
from pallas_kernels.common.blocks import Span, load
from pallas_kernels.common.launch import let_next_start
from pallas_kernels.common.norm import Norm
from pallas_kernels.common.prefetch import prefetch
from pallas_kernels.common.tiles import MMA_ROWS, StreamShape, Tiles

LAST_PROGRAMS = 128
"""How many of a kernel's programs ask for the next weights: those that end last."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """One program's share of the weight, read block by block of the reduction axis.

    Attributes:
        x_ref: [M, I]; w_ref: [R, I] or [R, 2, I].
        norm, norm_ref: RMSNorm of x and its weight [I]; None for none, as always in the tensor-core form.
        first_row: the program's first row of the weight (traced).
        limit: the first row that is not the program's (traced), or None when all of its block_n are.
        prefetch_ref: [elements] of a later kernel's weight, or None; prefetch_bytes of it are asked for.
        early: whether the next kernel's programs may start at once, or only when this one's loads are done.
    """

    x_ref: Any
    norm_ref: Any
    w_ref: Any
    first_row: Any
    limit: Any
    shape: StreamShape
    tiles: Tiles
    norm: Norm | None
    interpret: bool
    prefetch_ref: Any = None
    prefetch_bytes: int = 0
    early: bool = False

    def row_groups(self) -> list[tuple[jax.Array, jax.Array]]:
        """How x's rows are grouped: (rows int32 [m], which of them are valid bool [m]); one group of 16 in the
        tensor-core form, else M groups of one."""
        if self.tiles.mma:
            rows = jnp.arange(MMA_ROWS, dtype=jnp.int32)
            return [(rows, rows < self.shape.rows)]
        return [(jnp.full((1,), m, jnp.int32), jnp.full((1,), True)) for m in range(self.shape.rows)]

    def sums(self) -> list[tuple[jax.Array, ...]]:
        """Streams the weight past x: for each group of rows a tuple of C float32 [m, block_n]."""
        if self.early:
            let_next_start(self.interpret)
        return _sums_mma(self) if self.tiles.mma else _sums_fma(self)

    def loaded(self):
        """All loads are done: the last programs to start ask for what the next kernel reads first."""
        if self.prefetch_ref is not None and not self.interpret:
            programs = pl.cdiv(self.shape.outputs, self.tiles.block_n)
            last = min(programs, LAST_PROGRAMS)
            program = pl.program_id(0) - (programs - last)
            prefetch(self.prefetch_ref, program, programs=last, limit_bytes=self.prefetch_bytes)
        if not self.early:
            let_next_start(self.interpret)

    def span(self, k, ragged):
        return Span(k, self.tiles.block_k, self.shape.inputs if ragged else None)

    def weights(self, k, ragged):
        rows, cols = Span(self.first_row, self.tiles.block_n, self.limit), self.span(k, ragged)
        indices = [(rows, cols)] if self.shape.groups == 1 else [(rows, c, cols) for c in range(self.shape.groups)]
        return [load(self.w_ref, *i, interpret=self.interpret) for i in indices]

    def gain(self, norm: Norm, k, ragged):
        weight = load(self.norm_ref, self.span(k, ragged), interpret=self.interpret)
        return weight.astype(jnp.float32) + norm.offset

    def inverse_rms(self, norm: Norm, sum_of_squares):
        return lax.rsqrt(sum_of_squares / self.shape.inputs + norm.eps)

    def blocks(self, body, carry, pipelined=False) -> Any:
        """Runs body(k, ragged, carry) over the reduction axis; only a last block that hangs over is masked."""
        block_k = self.tiles.block_k
        full, rest = divmod(self.shape.inputs, block_k)

        def step(j, carry):
            if pipelined and not self.interpret:
                hooks.pipeline_loop(self.tiles.num_stages)
            return body(j * block_k, False, carry)

        if full == 1:
            carry = body(0, False, carry)
        elif full:
            carry = lax.fori_loop(0, full, step, carry)
        return body(full * block_k, True, carry) if rest else carry


def _sums_fma(reader: Stream):
    shape, tiles, norm = reader.shape, reader.tiles, reader.norm

    def body(k, ragged, carry):
        sums, squares = carry
        weights = [w.astype(jnp.float32) for w in reader.weights(k, ragged)]
        gain = reader.gain(norm, k, ragged) if norm is not None else None
        new_sums, new_squares = [], []
        for m in range(shape.rows):
            x = load(reader.x_ref, m, reader.span(k, ragged), interpret=reader.interpret).astype(jnp.float32)
            if gain is not None:
                new_squares.append(squares[m] + x * x)
                x = x * gain
            new_sums.append(tuple(s + w * x[None, :] for s, w in zip(sums[m], weights, strict=True)))
        return tuple(new_sums), tuple(new_squares)

    zeros = jnp.zeros((tiles.block_n, tiles.block_k), jnp.float32)
    squares = (jnp.zeros((tiles.block_k,), jnp.float32),) * (shape.rows if norm is not None else 0)
    sums, squares = reader.blocks(body, (((zeros,) * shape.groups,) * shape.rows, squares), tiles.num_stages > 1)
    reader.loaded()
    out = []
    for m in range(shape.rows):
        scale = reader.inverse_rms(norm, jnp.sum(squares[m])) if norm is not None else 1.0
        out.append(tuple((jnp.sum(s, axis=1) * scale)[None, :] for s in sums[m]))
    return out


def _sums_mma(reader: Stream):
    shape, tiles = reader.shape, reader.tiles
    precision = lax.Precision.HIGHEST if reader.w_ref.dtype == jnp.float32 else None

    # x goes into the product as it is loaded, so that it comes by the ring of asynchronous copies, as the weights do.
    def body(k, ragged, sums):
        weights = reader.weights(k, ragged)
        x = load(reader.x_ref, Span(0, MMA_ROWS, shape.rows), reader.span(k, ragged), interpret=reader.interpret)
        products = [plt.dot(x, w, trans_b=True, precision=precision) for w in weights]
        return tuple(s + p for s, p in zip(sums, products, strict=True))

    zeros = jnp.zeros((MMA_ROWS, tiles.block_n), jnp.float32)
    sums = reader.blocks(body, (zeros,) * shape.groups)
    reader.loaded()
    return [sums]
