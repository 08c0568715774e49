"""Forms of a stream's products: on vectors, on vectors of integers, or on tensor cores.

A form's step adds the products of a block of the weight to what the loop carries; at the end that gives the sums.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plt

from pallas_kernels.common import fixed_point, hooks, integer_dots
from pallas_kernels.common.blocks import Span, load
from pallas_kernels.common.quantised import RUN
from pallas_kernels.common.weight_block import Operands, WeightBlock


def form_of(stream: Any) -> "Vectors | TensorCores":
    """That of a `Stream`, by its tiles and by what it streams."""
    if stream.tiles.mma:
        return TensorCores(stream)
    if isinstance(stream.x_ref, fixed_point.FixedPointRefs):
        return LoadedIntegers(stream)
    return Integers(stream) if stream.shape.in_integers else Vectors(stream)


class Vectors:
    """Multiply and add, an activation row at a time; the carry is the sums and, with all of a norm, x's squares."""

    def __init__(self, stream: Any):
        self.stream, self.pipelined = stream, stream.tiles.num_stages > 1
        self.gathers_squares = stream.norm_ref is not None

    def parts(self):
        return [self.stream.parts(m) for m in range(self.stream.shape.rows)]

    def zeros(self):
        shape, tiles = self.stream.shape, self.stream.tiles
        zeros = jnp.zeros((tiles.block_n, tiles.block_k), jnp.float32)
        squares = (jnp.zeros((tiles.block_k,), jnp.float32),) * (shape.rows if self.gathers_squares else 0)
        return ((zeros,) * shape.groups,) * shape.rows, squares

    def ahead(self, weights: WeightBlock, k, ragged):
        """What a step at k needs beside its weights, loaded in the step before."""
        return ()

    def step(self, weights: WeightBlock, k, ragged, ahead, carry):
        for operands in weights.operands(k, ragged, "float32"):
            carry = self._with(operands, *carry)
        return carry

    def _gain(self, span: Span) -> jax.Array | None:
        """What the norm's weight makes of x, float32; None where that is not left to the kernel."""
        if not self.gathers_squares:
            return None
        assert self.stream.norm is not None
        gain = load(self.stream.norm_ref, span, interpret=self.stream.interpret).astype(jnp.float32)
        # Only what is not 0: it would be added as any number is.
        return gain + self.stream.norm.offset if self.stream.norm.offset else gain

    def _activations(self, m: int, span: Span, gain, squares):
        """(a row's x with the norm's weight, float32; the squares of all rows with those of this one added)."""
        x = load(self.stream.x_ref, m, span, interpret=self.stream.interpret).astype(jnp.float32)
        if gain is None:
            return x, squares
        added = self._multiply_add(x, x, squares[m])
        return x * gain, (*squares[:m], added, *squares[m + 1 :])

    def _with(self, operands: Operands, sums, squares):
        weights, gain = operands.weights, self._gain(operands.inputs)
        new_sums = []
        for m in range(self.stream.shape.rows):
            x, squares = self._activations(m, operands.inputs, gain, squares)
            x = jnp.broadcast_to(x[None, :], weights[0].shape)
            if operands.scales is None:
                pairs = [(w, x) for w in weights]
            else:
                pairs = [(w * x, jnp.broadcast_to(s[:, None], w.shape)) for w, s in zip(weights, operands.scales)]
            new_sums.append(tuple(self._multiply_add(*pair, s) for s, pair in zip(sums[m], pairs, strict=True)))
        return tuple(new_sums), squares

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


class Integers(Vectors):
    """The same with integers: `fixed_point` of x, and sums of runs of inputs, each of which has its own scales."""

    def zeros(self):
        sums, squares = super().zeros()
        return jax.tree.map(lambda x: jnp.zeros((x.shape[0], x.shape[1] // RUN), x.dtype), sums), squares

    def step(self, weights: WeightBlock, k, ragged, ahead, carry):
        words = weights.words(k, ragged)
        sums, squares = carry
        parts = []  # all of x before the first product: what one rounding waits for, others hide
        for part, span in enumerate(self._spans(k, ragged)):
            scales, gain, rows = weights.run_scales(k, part, ragged), self._gain(span), []
            for m in range(self.stream.shape.rows):
                x, squares = self._activations(m, span, gain, squares)
                bits = self.stream.shape.activation_bits
                rows.append(integer_dots.fixed_point(x, bits, interpret=self.stream.interpret))
            parts.append((rows, scales))
        return self._products(words, parts, sums), squares

    def _spans(self, k, ragged) -> list[Span]:
        """The inputs of a step, of each part."""
        shape, length = self.stream.shape, self.stream.shape.stored_inputs
        return [
            Span(part * length + k, self.stream.tiles.block_k, (part + 1) * length if ragged else None)
            for part in range(shape.parts)
        ]

    def _products(self, words, parts, sums):
        """The sums with the products of words and parts: for each part of the inputs rows, and scales of the weight."""
        shape = self.stream.shape
        for part, (rows, scales) in enumerate(parts):
            stored = [
                integer_dots.bytes_of(one, str(shape.weight_dtype), part, interpret=self.stream.interpret)
                for one in words
            ]
            sums = tuple(
                tuple(self._added(*each, x) for each in zip(sums[m], stored, scales, strict=True))
                for m, x in enumerate(rows)
            )
        return sums

    def _added(self, sums, stored, scales, x):
        by_run, zeros = scales
        found = integer_dots.run_sums(stored, x, interpret=self.stream.interpret).astype(jnp.float32)
        factor = jnp.broadcast_to((x.scales * (1 / stored.factor))[None, :], found.shape)
        if zeros is not None:
            less = -integer_dots.totals(x, interpret=self.stream.interpret).astype(jnp.float32) * x.scales
            less = jnp.broadcast_to(less[None, :], found.shape)
            sums = self._multiply_add(zeros if by_run is None else zeros * by_run, less, sums)
        if by_run is None:
            return self._multiply_add(found, factor, sums)
        return self._multiply_add(found * factor, by_run, sums)


class LoadedIntegers(Integers):
    """The same of x that comes in fixed point: no number changes threads, so no thread waits for another."""

    def ahead(self, weights: WeightBlock, k, ragged):
        """See `_products`."""
        stream, parts = self.stream, []
        for part, span in enumerate(self._spans(k, ragged)):
            rows = [
                fixed_point.load(stream.x_ref, m, span, interpret=stream.interpret) for m in range(stream.shape.rows)
            ]
            parts.append((rows, weights.run_scales(k, part, ragged)))
        return parts

    def step(self, weights: WeightBlock, k, ragged, ahead, carry):
        sums, squares = carry
        return self._products(weights.words(k, ragged), ahead, sums), squares


class TensorCores:
    """Products of the activation rows, padded; the backend sees to the ring, as the loads feed a product."""

    pipelined = False

    def __init__(self, stream: Any):
        self.stream = stream
        self.rows = stream.rows()  # here, as a loop of interpret mode does not know its program
        self.precision = lax.Precision.HIGHEST if stream.shape.dtype == "float32" else None

    def parts(self):
        return self.stream.parts(self.rows)

    def zeros(self):
        tiles = self.stream.tiles
        shape = (tiles.block_n, tiles.block_m) if tiles.swap_ab else (tiles.block_m, tiles.block_n)
        return (jnp.zeros(shape, jnp.float32),) * self.stream.shape.groups

    def ahead(self, weights: WeightBlock, k, ragged):
        return ()

    def step(self, weights: WeightBlock, k, ragged, ahead, sums):
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
