"""The loop that every projection is made of: stream a weight past a few activation rows.

A program owns a block, `block_n` outputs of the weight and all of the reduction axis, and waits for no other. In the
vector form RMSNorm costs no pass of its own: the sum of squares is gathered while the weights stream by, and its
factor, one number an activation row, is applied to the finished sums (the norm's weight is applied to x on the way). In
the tensor-core form x comes normed, from a small launch ahead (`prenorm`). A deferred norm (`deferred_norm`) leaves
only the factor, in either form.

With `splits` several programs share a block, each with a part of the reduction axis. What they have are partial sums,
which a launch of its own adds up (`projection/combine.py`, `rope_and_cache`).

Letters: M activation rows, O outputs of the weight, C outputs packed together (2 for the two halves of a rotation, or
gate and up), I the reduction axis.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.common import hooks
from pallas_kernels.common.blocks import Span, load
from pallas_kernels.common.launch import launch_dependents
from pallas_kernels.common.prefetch import prefetch
from pallas_kernels.common.prenorm import Norm
from pallas_kernels.common.stream_tiles import StreamShape, Tiles, row_blocks_of
from pallas_kernels.common.weight_block import Block, Operands, WeightBlock, WeightRefs

LAST_PROGRAMS = 128
"""How many of a kernel's programs ask for the next weights: those that end last."""


def blocks_of(shape: StreamShape, tiles: Tiles, block_stride: int | None = None) -> int:
    """How many blocks of outputs there are; they start `block_stride` outputs apart, block_n if None."""
    return pl.cdiv(shape.outputs, block_stride or tiles.block_n)


def programs_of(shape: StreamShape, tiles: Tiles, block_stride: int | None = None) -> int:
    """How many programs the kernel has: one a block of outputs and of activation rows."""
    return blocks_of(shape, tiles, block_stride) * row_blocks_of(shape, tiles)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """One program's share of the weight, read step by step of the reduction axis.

    Attributes:
        x_ref: [M, I]. weight: see `weight_refs`.
        norm, norm_ref, squares_ref: what is left of RMSNorm of x and its weight [I] or squares [M, parts]; see
            `prenorm.Activations`.
        block_stride: outputs from the start of a block to that of the next; None for block_n.
        prefetch_ref: [elements] of a later kernel's weight, or None; prefetch_bytes of it are asked for.
        early: whether the next kernel's programs may start at once, or only when this one's loads are done.
    """

    x_ref: Any
    norm_ref: Any
    weight: WeightRefs
    shape: StreamShape
    tiles: Tiles
    norm: Norm | None
    interpret: bool
    squares_ref: Any = None
    block_stride: int | None = None
    prefetch_ref: Any = None
    prefetch_bytes: int = 0
    early: bool = False

    def row_groups(self) -> list[tuple[jax.Array, jax.Array]]:
        """How the activation rows are grouped: (rows int32 [m], which of them are valid bool [m]).

        One group of block_m in the tensor-core form, else M groups of one.
        """
        if self.tiles.mma:
            rows = self.rows().indices()
            return [(rows, rows < self.shape.rows)]
        return [(jnp.full((1,), m, jnp.int32), jnp.full((1,), True)) for m in range(self.shape.rows)]

    def run(self, finish: Callable, before: Callable | None = None) -> None:
        """Streams the program's block past x, and calls finish(block, prepared, sums) for each group of rows.

        With splits the sums are partial ones.

        Args:
            finish: sums are a tuple of C float32 [m, block_n].
            before: before(block) gives a list of what the finish of each group needs, loaded while the weights are on
                their way; None for the group itself, as `row_groups` has it.
        """
        form = _TensorCores(self) if self.tiles.mma else _Vectors(self)
        block = self._block()
        prepared = before(block) if before else self.row_groups()
        weights = WeightBlock(
            weight=self.weight, block=block, shape=self.shape, tiles=self.tiles, interpret=self.interpret
        )
        parts, scales = form.parts(), weights.row_scales()
        if self.early:
            launch_dependents(self.interpret)
        carry = self._steps(lambda k, ragged, carry: form.step(weights, k, ragged, carry), form.zeros(), form.pipelined)
        self._loaded()
        for ready, sums in zip(prepared, form.sums(carry, parts), strict=True):
            finish(block, ready, sums if scales is None else [y * s[None, :] for y, s in zip(sums, scales)])

    def rows(self) -> Span:
        """The program's own activation rows, in the tensor-core form."""
        row_blocks, block_m = row_blocks_of(self.shape, self.tiles), self.tiles.block_m
        first = 0 if row_blocks == 1 else pl.program_id(0) % row_blocks * block_m
        return Span(first, block_m, self.shape.rows)

    def _block(self) -> Block:
        row_blocks = row_blocks_of(self.shape, self.tiles)
        index = pl.program_id(0) if row_blocks == 1 else pl.program_id(0) // row_blocks
        first = index * (self.block_stride or self.tiles.block_n)
        limit = None
        if self.block_stride not in (None, self.tiles.block_n):
            limit = first + self.block_stride
        elif self.shape.outputs % self.tiles.block_n:
            limit = self.shape.outputs
        return Block(index=index, first=first, limit=limit)

    def split(self) -> Any:
        """Which part of the reduction axis is the program's."""
        return 0 if self.tiles.splits == 1 else pl.program_id(1)

    def _loaded(self):
        """All loads are done: the last programs to start ask for what the next kernel reads first."""
        if self.prefetch_ref is not None and not self.interpret:
            each = programs_of(self.shape, self.tiles, self.block_stride)
            programs = each * self.tiles.splits
            last = min(programs, LAST_PROGRAMS)
            program = self.split() * each + pl.program_id(0) - (programs - last)
            prefetch(self.prefetch_ref, program, programs=last, limit_bytes=self.prefetch_bytes)
        if not self.early:
            launch_dependents(self.interpret)

    def _steps(self, body, carry, pipelined: bool) -> Any:
        """Runs body(k, ragged, carry) over the program's part of the reduction axis.

        Only a last step that hangs over the axis is masked; there is none where the axis is split.
        """
        block_k = self.tiles.block_k
        share = self.shape.stored_inputs // self.tiles.splits
        begin = self.split() * share
        full, rest = divmod(share, block_k)

        def step(j, carry):
            if pipelined and not self.interpret:
                hooks.pipeline_loop(self.tiles.num_stages)
            return body(begin + j * block_k, False, carry)

        if full == 1:
            carry = body(begin, False, carry)
        elif full:
            carry = lax.fori_loop(0, full, step, carry)
        return body(full * block_k, True, carry) if rest else carry

    def parts(self, *rows) -> jax.Array | None:
        """The partial squares of activation rows, [..., parts]; asked for before the weights, summed up after them."""
        if self.squares_ref is None:
            return None
        count = self.squares_ref.shape[1]
        size = pl.next_power_of_2(count)
        return load(self.squares_ref, *rows, Span(0, size, None if size == count else count), interpret=self.interpret)

    def factor(self, squares: jax.Array) -> jax.Array:
        """RMSNorm's factor of rows, from squares [..., any] that are yet to be summed up."""
        assert self.norm is not None
        return lax.rsqrt(jnp.sum(squares, axis=-1) / self.shape.inputs + self.norm.eps)


class _Vectors:
    """Multiply and add, an activation row at a time; the carry is the sums and, with all of a norm, x's squares."""

    def __init__(self, stream: Stream):
        self.stream, self.pipelined = stream, stream.tiles.num_stages > 1
        self.gathers_squares = stream.norm_ref is not None

    def parts(self):
        return [self.stream.parts(m) for m in range(self.stream.shape.rows)]

    def zeros(self):
        shape, tiles = self.stream.shape, self.stream.tiles
        zeros = jnp.zeros((tiles.block_n, tiles.block_k), jnp.float32)
        squares = (jnp.zeros((tiles.block_k,), jnp.float32),) * (shape.rows if self.gathers_squares else 0)
        return ((zeros,) * shape.groups,) * shape.rows, squares

    def step(self, weights: WeightBlock, k, ragged, carry):
        for operands in weights.operands(k, ragged, "float32"):
            carry = self._added(operands, *carry)
        return carry

    def _added(self, operands: Operands, sums, squares):
        stream, weights, span = self.stream, operands.weights, operands.inputs
        interpret, gain = stream.interpret, None
        if self.gathers_squares:
            assert stream.norm is not None
            gain = load(stream.norm_ref, span, interpret=interpret).astype(jnp.float32) + stream.norm.offset
        new_sums, new_squares = [], []
        for m in range(stream.shape.rows):
            x = load(stream.x_ref, m, span, interpret=interpret).astype(jnp.float32)
            if gain is not None:
                new_squares.append(self._multiply_add(x, x, squares[m]))
                x = x * gain
            x = jnp.broadcast_to(x[None, :], weights[0].shape)
            if operands.scales is None:
                pairs = [(w, x) for w in weights]
            else:
                pairs = [(w * x, jnp.broadcast_to(s[:, None], w.shape)) for w, s in zip(weights, operands.scales)]
            new_sums.append(tuple(self._multiply_add(*pair, s) for s, pair in zip(sums[m], pairs, strict=True)))
        return tuple(new_sums), tuple(new_squares)

    def _multiply_add(self, a, b, c):
        return a * b + c if self.stream.interpret else hooks.multiply_add(a, b, c)

    def sums(self, carry, parts):
        (sums, squares), out = carry, []
        for m in range(self.stream.shape.rows):
            scale = 1.0
            if self.stream.norm is not None:
                scale = self.stream.factor(squares[m] if self.gathers_squares else parts[m])
            out.append(tuple((jnp.sum(s, axis=1) * scale)[None, :] for s in sums[m]))
        return out


class _TensorCores:
    """Products of the activation rows, padded; the backend sees to the ring, as the loads feed a product."""

    pipelined = False

    def __init__(self, stream: Stream):
        self.stream = stream
        self.rows = stream.rows()  # here, as a loop of interpret mode does not know its program
        self.precision = lax.Precision.HIGHEST if stream.shape.dtype == "float32" else None

    def parts(self):
        return self.stream.parts(self.rows)

    def zeros(self):
        tiles = self.stream.tiles
        shape = (tiles.block_n, tiles.block_m) if tiles.swap_ab else (tiles.block_m, tiles.block_n)
        return (jnp.zeros(shape, jnp.float32),) * self.stream.shape.groups

    def step(self, weights: WeightBlock, k, ragged, sums):
        # x goes into the product as it is loaded: so it comes by the ring of asynchronous copies, as the weights do.
        stream, swapped = self.stream, self.stream.tiles.swap_ab
        for operands in weights.operands(k, ragged, None):
            x = load(stream.x_ref, self.rows, operands.inputs, interpret=stream.interpret)
            pairs = [(w, x) if swapped else (x, w) for w in operands.weights]
            products = [plt.dot(a, b, trans_b=True, precision=self.precision) for a, b in pairs]
            if operands.scales is not None:
                scales = [s[:, None] if swapped else s[None, :] for s in operands.scales]
                products = [p * s for p, s in zip(products, scales)]
            sums = tuple(s + p for s, p in zip(sums, products, strict=True))
        return sums

    def sums(self, carry, parts):
        if self.stream.tiles.swap_ab:
            carry = tuple(s.T for s in carry)
        if parts is not None:
            factor = self.stream.factor(parts)[:, None]
            carry = tuple(s * factor for s in carry)
        return [carry]
