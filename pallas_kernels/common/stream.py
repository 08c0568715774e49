"""The loop that every projection is made of: stream rows of weights past a few rows of activations.

A block is `block_n` rows of the weight and all of the reduction axis; a program owns one, or, where the tiles name a
number of programs, a run of them that it streams one after the other without ever letting the ring of loads run dry.
No program waits for another. In the vector form RMSNorm costs no pass of its own: the sum of squares is gathered while
the weights stream by, and its factor, one number per row of x, is applied to the finished sums (the norm's weight is
applied to x on the way). In the tensor-core form x comes normed, from a small launch ahead (`norm.ahead`). Rows that
come weighted (`weighted`) leave only the factor, in either form.

Letters: M rows of x, R rows of the weight, C weights per row (2 where two rows belong together: the two halves of a
rotation, or gate and up), I the reduction axis.
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
from pallas_kernels.common.launch import let_next_start
from pallas_kernels.common.norm import Norm
from pallas_kernels.common.prefetch import prefetch
from pallas_kernels.common.tiles import MMA_ROWS, StreamShape, Tiles, power_of_two_at_least

LAST_PROGRAMS = 128
"""How many of a kernel's programs ask for the next weights: those that end last."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Rows of the weight that are summed together.

    Attributes:
        index: among all blocks. first: its first row. limit: the first row that is not its own, or None when all of
            its block_n are.
    """

    index: Any
    first: Any
    limit: Any


def blocks_of(shape: StreamShape, tiles: Tiles, apart: int | None = None) -> int:
    """How many blocks the weight has; they start `apart` rows from each other, block_n if None."""
    return pl.cdiv(shape.outputs, apart or tiles.block_n)


def programs_of(shape: StreamShape, tiles: Tiles, apart: int | None = None) -> int:
    """How many programs stream them: the kernel's grid."""
    blocks = blocks_of(shape, tiles, apart)
    return min(tiles.programs, blocks) if tiles.programs else blocks


def start_of(program, blocks: int, programs: int):
    """The first block of a program's run (`blocks` of the one after the last): runs differ by one block at most."""
    each, more = divmod(blocks, programs)
    return program * each + jnp.minimum(program, more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """One program's share of the weight, read block by block, and those step by step of the reduction axis.

    Attributes:
        x_ref: [M, I]; w_ref: [R, I] or [R, 2, I].
        norm, norm_ref, squares_ref: what is left of RMSNorm of x and its weight [I] or squares [M, parts]; `norm.Left`.
        apart: rows from the start of a block to that of the next; None for block_n.
        prefetch_ref: [elements] of a later kernel's weight, or None; prefetch_bytes of it are asked for.
        early: whether the next kernel's programs may start at once, or only when this one's loads are done.
    """

    x_ref: Any
    norm_ref: Any
    w_ref: Any
    shape: StreamShape
    tiles: Tiles
    norm: Norm | None
    interpret: bool
    squares_ref: Any = None
    apart: int | None = None
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

    def run(self, finish: Callable, before: Callable | None = None) -> None:
        """Streams the program's blocks past x, and calls finish(block, prepared, sums) for each group of rows of each.

        Args:
            finish: sums are a tuple of C float32 [m, block_n].
            before: before(block) gives a list of what the finish of each group needs, loaded while the weights are on
                their way; None for the group itself, as `row_groups` has it.
        """
        before = before or (lambda block: self.row_groups())
        form = _TensorCores(self) if self.tiles.mma else _Vectors(self)

        def end(block, prepared, parts, carry):
            for ready, sums in zip(prepared, form.sums(carry, parts), strict=True):
                finish(block, ready, sums)

        if self.tiles.programs:
            self._run_of_blocks(form, before, end)
            return
        block = self._block(pl.program_id(0))
        prepared, parts = before(block), form.parts()
        if self.early:
            let_next_start(self.interpret)
        carry = self._steps(lambda k, ragged, carry: form.step(block, k, ragged, carry), form.zeros(), form.pipelined)
        self._loaded()
        end(block, prepared, parts, carry)

    def _run_of_blocks(self, form, before, end):
        """The steps of all blocks are one loop, so the loads of a block begin while those before it are summed."""
        blocks = blocks_of(self.shape, self.tiles, self.apart)
        programs = programs_of(self.shape, self.tiles, self.apart)
        steps, program = jnp.int32(self.shape.inputs // self.tiles.block_k), pl.program_id(0)
        first, stop = (start_of(i, blocks, programs) for i in (program, program + 1))
        if self.early:
            let_next_start(self.interpret)
        parts = form.parts()

        def step(j, carry):
            if form.pipelined and not self.interpret:
                hooks.pipeline_loop(self.tiles.num_stages)
            block = self._block(first + lax.div(j, steps))
            k = lax.rem(j, steps)
            carry = form.step(block, k * self.tiles.block_k, False, carry)
            last = k == steps - 1

            @pl.when(last)
            def _():
                end(block, before(block), parts, carry)

            return jax.tree.map(lambda sums: jnp.where(last, jnp.zeros_like(sums), sums), carry)

        lax.fori_loop(0, (stop - first) * steps, step, form.zeros())
        self._loaded()

    def _block(self, index) -> Block:
        first = index * (self.apart or self.tiles.block_n)
        limit = None
        if self.apart not in (None, self.tiles.block_n):
            limit = first + self.apart
        elif self.shape.outputs % self.tiles.block_n:
            limit = self.shape.outputs
        return Block(index=index, first=first, limit=limit)

    def _loaded(self):
        """All loads are done: the last programs to start ask for what the next kernel reads first."""
        if self.prefetch_ref is not None and not self.interpret:
            programs = programs_of(self.shape, self.tiles, self.apart)
            last = min(programs, LAST_PROGRAMS)
            program = pl.program_id(0) - (programs - last)
            prefetch(self.prefetch_ref, program, programs=last, limit_bytes=self.prefetch_bytes)
        if not self.early:
            let_next_start(self.interpret)

    def _steps(self, body, carry, pipelined: bool) -> Any:
        """Runs body(k, ragged, carry) over the reduction axis; only a last step that hangs over is masked."""
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

    def span(self, k, ragged):
        return Span(k, self.tiles.block_k, self.shape.inputs if ragged else None)

    def parts(self, *rows) -> jax.Array | None:
        """The parts of the squares of rows of x, [..., parts]; asked for before the weights, summed up after them."""
        if self.squares_ref is None:
            return None
        count = self.squares_ref.shape[1]
        size = power_of_two_at_least(count)
        return load(self.squares_ref, *rows, Span(0, size, None if size == count else count), interpret=self.interpret)

    def factor(self, squares: jax.Array) -> jax.Array:
        """RMSNorm's factor of rows from their squares, [..., any], which are summed up."""
        assert self.norm is not None
        return lax.rsqrt(jnp.sum(squares, axis=-1) / self.shape.inputs + self.norm.eps)

    def weights(self, block: Block, k, ragged):
        rows, cols = Span(block.first, self.tiles.block_n, block.limit), self.span(k, ragged)
        indices = [(rows, cols)] if self.shape.groups == 1 else [(rows, c, cols) for c in range(self.shape.groups)]
        return [load(self.w_ref, *i, interpret=self.interpret) for i in indices]


class _Vectors:
    """Multiply and add, a row of x at a time; the carry is the sums and, with all of a norm, x's squares."""

    def __init__(self, stream: Stream):
        self.stream, self.pipelined = stream, stream.tiles.num_stages > 1
        self.gathers = stream.norm_ref is not None

    def parts(self):
        return [self.stream.parts(m) for m in range(self.stream.shape.rows)]

    def zeros(self):
        shape, tiles = self.stream.shape, self.stream.tiles
        zeros = jnp.zeros((tiles.block_n, tiles.block_k), jnp.float32)
        squares = (jnp.zeros((tiles.block_k,), jnp.float32),) * (shape.rows if self.gathers else 0)
        return ((zeros,) * shape.groups,) * shape.rows, squares

    def step(self, block: Block, k, ragged, carry):
        stream, (sums, squares) = self.stream, carry
        span, interpret = stream.span(k, ragged), stream.interpret
        weights = [w.astype(jnp.float32) for w in stream.weights(block, k, ragged)]
        gain = None
        if self.gathers:
            assert stream.norm is not None
            gain = load(stream.norm_ref, span, interpret=interpret).astype(jnp.float32) + stream.norm.offset
        new_sums, new_squares = [], []
        for m in range(stream.shape.rows):
            x = load(stream.x_ref, m, span, interpret=interpret).astype(jnp.float32)
            if gain is not None:
                new_squares.append(self._multiply_add(x, x, squares[m]))
                x = x * gain
            x = jnp.broadcast_to(x[None, :], weights[0].shape)
            new_sums.append(tuple(self._multiply_add(w, x, s) for s, w in zip(sums[m], weights, strict=True)))
        return tuple(new_sums), tuple(new_squares)

    def _multiply_add(self, a, b, c):
        return a * b + c if self.stream.interpret else hooks.multiply_add(a, b, c)

    def sums(self, carry, parts):
        (sums, squares), out = carry, []
        for m in range(self.stream.shape.rows):
            scale = 1.0
            if self.stream.norm is not None:
                scale = self.stream.factor(squares[m] if self.gathers else parts[m])
            out.append(tuple((jnp.sum(s, axis=1) * scale)[None, :] for s in sums[m]))
        return out


class _TensorCores:
    """Products of x's rows, padded to 16; the backend sees to the ring, as the loads feed a product."""

    pipelined = False

    def __init__(self, stream: Stream):
        self.stream = stream
        self.precision = lax.Precision.HIGHEST if stream.w_ref.dtype == jnp.float32 else None

    def parts(self):
        return self.stream.parts(Span(0, MMA_ROWS, self.stream.shape.rows))

    def zeros(self):
        return (jnp.zeros((MMA_ROWS, self.stream.tiles.block_n), jnp.float32),) * self.stream.shape.groups

    def step(self, block: Block, k, ragged, sums):
        # x goes into the product as it is loaded: so it comes by the ring of asynchronous copies, as the weights do.
        stream = self.stream
        weights, rows = stream.weights(block, k, ragged), Span(0, MMA_ROWS, stream.shape.rows)
        x = load(stream.x_ref, rows, stream.span(k, ragged), interpret=stream.interpret)
        products = [plt.dot(x, w, trans_b=True, precision=self.precision) for w in weights]
        return tuple(s + p for s, p in zip(sums, products, strict=True))

    def sums(self, carry, parts):
        if parts is not None:
            factor = self.stream.factor(parts)[:, None]
            carry = tuple(s * factor for s in carry)
        return [carry]
