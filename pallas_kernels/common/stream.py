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

from pallas_kernels.common import hooks, stream_forms
from pallas_kernels.common.blocks import Span, load
from pallas_kernels.common.launch import launch_dependents
from pallas_kernels.common.prefetch import prefetch
from pallas_kernels.common.prenorm import Norm
from pallas_kernels.common.stream_tiles import StreamShape, Tiles, row_blocks_of
from pallas_kernels.common.weight_block import Block, WeightBlock, WeightRefs

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
        form = stream_forms.form_of(self)
        block = self._block()
        prepared = before(block) if before else self.row_groups()
        weights = WeightBlock(
            weight=self.weight, block=block, shape=self.shape, tiles=self.tiles, interpret=self.interpret
        )
        parts, scales = form.parts(), weights.row_scales()
        if self.early:
            launch_dependents(self.interpret)
        carry = self._steps(form, weights)
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

    def _steps(self, form: Any, weights: WeightBlock) -> Any:
        """Runs a form's steps over the program's part of the reduction axis.

        Only a last step that hangs over the axis is masked; there is none where the axis is split.
        """
        block_k = self.tiles.block_k
        share = self.shape.stored_inputs // self.tiles.splits
        begin = self.split() * share
        full, rest = divmod(share, block_k)
        carry = form.zeros()

        def step(j, carry):
            if form.pipelined and not self.interpret:
                hooks.pipeline_loop(self.tiles.num_stages)
            ahead, carry = carry
            following = form.ahead(weights, begin + jnp.minimum(j + 1, full - 1) * block_k, False)
            return following, form.step(weights, begin + j * block_k, False, ahead, carry)

        if full:
            ahead = form.ahead(weights, begin, False)
            if full == 1:
                carry = form.step(weights, begin, False, ahead, carry)
            else:
                _, carry = lax.fori_loop(0, full, step, (ahead, carry))
        if rest:
            k = full * block_k
            carry = form.step(weights, k, True, form.ahead(weights, k, True), carry)
        return carry

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
