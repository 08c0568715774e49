"""A program's block of a weight as it is stored: loaded, and where it is quantised unpacked, with its scales."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.common import hooks
from pallas_kernels.common.blocks import Span, gather, load
from pallas_kernels.common.integer_dots import WORD
from pallas_kernels.common.quantised import RUN
from pallas_kernels.common.stream_tiles import StreamShape, Tiles
from pallas_kernels.common.unpack import unpack
from pallas_kernels.common.weights import Weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """The outputs of one program.

    Attributes:
        index: among all blocks. first: its first output. limit: the first output that is not its own, or None when all
            of its block_n are.
    """

    index: Any
    first: Any
    limit: Any


class Operands(NamedTuple):
    """What is multiplied in a step.

    Attributes:
        inputs: which of the reduction axis. weights: [block_n, block_k] of each index of the packed axis.
        scales: [block_n] of each, for the products' sums; None for 1.
    """

    inputs: Span
    weights: list[jax.Array]
    scales: list[jax.Array] | None


class WeightRefs(NamedTuple):
    """A weight as it is stored: values [O, I] or [O, 2, I], and of a quantised one scales, and zero points or None,
    [O, groups] or [O, 2, groups]; see `QuantisedWeight`."""

    values: Any
    scales: Any
    zeros: Any


def weight_refs(refs: Any) -> WeightRefs:
    """Those that `streamed` gave names in a launch."""
    return WeightRefs(refs.w, refs.scales, refs.zeros)


def streamed(weight: Weight) -> dict[str, jax.Array | None]:
    """Of a launch's inputs those of its weight, by name."""
    return dict(w=weight.values, scales=getattr(weight, "scales", None), zeros=getattr(weight, "zeros", None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightBlock:
    """The outputs of one program in a weight, read step by step of the reduction axis.

    Attributes:
        weight: see `weight_refs`. block: which outputs.
    """

    weight: WeightRefs
    block: Block
    shape: StreamShape
    tiles: Tiles
    interpret: bool

    def operands(self, k: Any, ragged: bool, dtype: str | None) -> list[Operands]:
        """What a step multiplies: the weights at k of the array's reduction axis, for each of the inputs they hold.

        Args:
            ragged: whether the step hangs over the axis. dtype: of the weights; None for that of the activations.
        """
        length = self.shape.stored_inputs
        along = Span(k, self.tiles.block_k, length if ragged else None)
        stored = [load(self.weight.values, *place, along, interpret=self.interpret) for place in self._places()]
        found = []
        for part in range(self.shape.parts):
            span = Span(part * length + k, self.tiles.block_k, (part + 1) * length if ragged else None)
            weights, scales = [w if dtype is None else w.astype(dtype) for w in stored], None
            if self.shape.is_quantised:
                weights, scales = self._unpacked(stored, part, span, dtype or self.shape.dtype)
            found.append(Operands(inputs=span, weights=weights, scales=scales))
        return found

    def _unpacked(self, stored, part: int, span: Span, dtype):
        """Weights [block_n, block_k] less their zero points, and scales [block_n] where the step is of one group."""
        shape, scales = self.shape, None
        weights = [unpack(values, str(shape.weight_dtype), part, dtype, interpret=self.interpret) for values in stored]
        if (size := shape.scale_group) is None or self._of_one_group(size):
            group = 0 if size is None else span.start // size
            if self.weight.zeros is not None:
                zeros = [self._by_row(self.weight.zeros, place, group) for place in self._places()]
                weights = [w - zero.astype(dtype)[:, None] for w, zero in zip(weights, zeros)]
            if size is not None:
                scales = [self._by_row(self.weight.scales, place, group) for place in self._places()]
            return weights, scales
        inside = span.indices() < (shape.inputs if span.limit is None else span.limit)
        groups = jnp.minimum(span.indices() // size, self.weight.scales.shape[-1] - 1)
        found = []
        for w, (outputs, *c) in zip(weights, self._places()):
            rows = outputs.indices()[:, None]
            mask = (rows < shape.outputs) & inside[None, :]
            w = w.astype(jnp.float32)
            if self.weight.zeros is not None:
                w -= gather(self.weight.zeros, rows, *c, groups[None, :], mask=mask)
            found.append((w * gather(self.weight.scales, rows, *c, groups[None, :], mask=mask)).astype(dtype))
        return found, None

    def _of_one_group(self, size: int) -> bool:
        """Whether every step's inputs share a scale."""
        return size % self.tiles.block_k == 0 and self.shape.stored_inputs % self.tiles.block_k == 0

    def words(self, k: Any, ragged: bool) -> list[jax.Array]:
        """What a step's weights are stored as, int32 [block_n, block_k / WORD] of each index of the packed axis.

        Args:
            k, ragged: as in `operands`.
        """
        size = self.tiles.block_k // WORD
        first = k // WORD if isinstance(k, int) else pl.multiple_of(lax.div(k, jnp.int32(WORD)), size)
        inside = Span(first, size, self.shape.stored_inputs // WORD if ragged else None)
        return [self._words(place, inside) for place in self._places()]

    def _words(self, place: tuple, along: Span) -> jax.Array:
        outputs, *c = place
        if self.interpret:
            bytes_along = Span(WORD * along.start, WORD * along.size, along.limit and WORD * along.limit)
            stored = load(self.weight.values, *place, bytes_along, interpret=True)
            return lax.bitcast_convert_type(stored.reshape(outputs.size, along.size, WORD), jnp.int32)
        masks = [
            jnp.expand_dims(span.indices() < span.limit, axis)
            for span, axis in ((outputs, 1), (along, 0))
            if span.limit is not None
        ]
        mask = None
        if masks:
            mask = jnp.broadcast_to(functools.reduce(jnp.logical_and, masks), (outputs.size, along.size))
        return hooks.load_words(
            self.weight.values,
            lambda words: (outputs.slice(), *(jnp.int32(i) for i in c), words),
            along.start if along.limit is None else jnp.int32(along.start),
            along.size,
            mask,
        )

    def run_scales(self, k: Any, part: int, ragged: bool) -> list[tuple[jax.Array | None, jax.Array | None]]:
        """Scales and zero points, float32 [block_n, block_k / RUN] of each index of the packed axis, or None.

        Scales are None where a row has one (`row_scales`), zero points where there are none.

        Args:
            k, ragged: as in `operands`. part: of the inputs that an element holds.
        """
        shape = self.shape
        first, runs = part * shape.stored_inputs + k, RUN * jnp.arange(self.tiles.block_k // RUN, dtype=jnp.int32)
        first_group, groups = self._groups(first, runs)

        def by_run(ref, outputs, *c):
            if ref is None:
                return None
            rows, mask = jnp.arange(outputs.size, dtype=jnp.int32)[:, None], None
            if outputs.limit is not None or ragged:  # of what is all inside, it would take instructions
                inside = first + runs < (part + 1) * shape.stored_inputs
                mask = (outputs.start + rows < shape.outputs) & inside[None, :]
            start, offsets = (outputs.start, *c, first_group), (rows, *[0] * len(c), groups[None, :])
            if self.interpret:
                return gather(ref, *(a + b for a, b in zip(start, offsets)), mask=mask)
            return hooks.load_near(ref, start, offsets, mask).astype(jnp.float32)

        scales = None if shape.scale_group is None else self.weight.scales
        return [(by_run(scales, *place), by_run(self.weight.zeros, *place)) for place in self._places()]

    def _groups(self, first: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        """Scale groups of the inputs that lie behind a step's first one: that of the first, and the ones behind it."""
        size, block_k = self.shape.scale_group, self.tiles.block_k
        if size is None:
            return 0, jnp.zeros_like(inputs)
        aligned = size % block_k == 0 or block_k % size == 0
        if aligned and (self.shape.parts == 1 or self.shape.stored_inputs % min(size, block_k) == 0):
            return lax.div(jnp.int32(first), jnp.int32(size)), lax.div(inputs, jnp.full_like(inputs, size))
        return 0, lax.div(first + inputs, jnp.full_like(inputs, size))

    def row_scales(self) -> list[jax.Array] | None:
        """Scales of rows, float32 [block_n] for each of the outputs that are packed together; None where there are
        others or none."""
        if self.weight.scales is None or self.shape.scale_group is not None:
            return None
        return [self._by_row(self.weight.scales, place, 0) for place in self._places()]

    def _by_row(self, ref, place, group) -> jax.Array:
        outputs, *c = place
        rows = outputs.indices()
        return gather(ref, rows, *c, group, mask=rows < self.shape.outputs)

    def _places(self) -> list[tuple]:
        """Of the block's outputs in the weight, those of each index of the packed axis."""
        outputs = Span(self.block.first, self.tiles.block_n, self.block.limit)
        return [(outputs,)] if self.shape.groups == 1 else [(outputs, c) for c in range(self.shape.groups)]
