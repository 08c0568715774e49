"""Blocks of an array that may hang over its edge.

A compiled kernel does not mask a block that does not divide its array, and interpret mode moves such a slice back
inside instead of masking it. `view` gives the one form that is right in both: a slice and its mask when compiled,
index arrays (which interpret mode drops or masks one by one) when interpreted.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt


@dataclasses.dataclass(frozen=True)
class Span:
    """`size` consecutive indices from `start`; those at or past `limit` are outside. No limit: all are inside."""

    start: Any
    size: int
    limit: Any = None

    def indices(self) -> jax.Array:
        return self.start + jnp.arange(self.size, dtype=jnp.int32)

    def slice(self) -> Any:
        """The indices as a slice of a ref; with a limit it may hang over the ref's edge, and is to be masked."""
        # A start that is a Python integer is checked against the edge when traced.
        return pl.ds(self.start if self.limit is None else jnp.int32(self.start), self.size)


def view(ref, *index, interpret: bool) -> tuple[Any, jax.Array | None]:
    """Returns `ref.at[index]`, in which an index is a scalar or a `Span`, and the mask of what is inside, if needed."""
    index = tuple(i if isinstance(i, Span) else jnp.int32(i) for i in index)
    spans = [i for i in index if isinstance(i, Span)]
    shape = tuple(span.size for span in spans)

    def along(values, axis):
        return jnp.broadcast_to(jnp.expand_dims(values, [a for a in range(len(shape)) if a != axis]), shape)

    masks = [along(span.indices() < span.limit, a) for a, span in enumerate(spans) if span.limit is not None]
    mask = functools.reduce(jnp.logical_and, masks) if masks else None
    if mask is not None and interpret:
        arrays = iter([along(span.indices(), a) for a, span in enumerate(spans)])
        return ref.at[tuple(next(arrays) if isinstance(i, Span) else i for i in index)], mask
    return ref.at[tuple(i.slice() if isinstance(i, Span) else i for i in index)], mask


def load(ref, *index, interpret: bool) -> jax.Array:
    """Loads a block; what is outside reads as zero."""
    return load_masked(*view(ref, *index, interpret=interpret))


def load_masked(at, mask: jax.Array | None) -> jax.Array:
    """Loads `ref.at[index]`; where the mask, if there is one, is False, zero."""
    # A zero of the ref's dtype: integers are not cast to 8-bit floats.
    return plt.load(at, mask=mask, other=None if mask is None else jnp.zeros((), at.dtype))


def store(ref, *index, value: jax.Array, interpret: bool) -> None:
    """Stores a block; what is outside is not written."""
    at, mask = view(ref, *index, interpret=interpret)
    plt.store(at, value.astype(ref.dtype), mask=mask)


def gather(ref, *index, mask: jax.Array | None, other=0.0) -> jax.Array:
    """Loads `ref[index]` element by element, float32; indices broadcast to the mask, `other` where it is False.

    Without a mask all are inside, and the indices broadcast to each other.
    """
    if mask is None:
        shape = jnp.broadcast_shapes(*map(jnp.shape, index))
        return plt.load(ref.at[_broadcast(index, shape)]).astype(jnp.float32)
    return plt.load(ref.at[_broadcast(index, mask.shape)], mask=mask, other=other).astype(jnp.float32)


def scatter(ref, *index, value: jax.Array, mask: jax.Array, interpret: bool) -> None:
    """Stores `value` to `ref[index]` element by element where the mask is True."""
    first, *rest = _broadcast(index, mask.shape)
    if interpret:  # there a masked element writes back what it read: past the end it is dropped instead
        first = jnp.where(mask, first, ref.shape[0])
    plt.store(ref.at[(first, *rest)], value.astype(ref.dtype), mask=mask)


def _broadcast(index, shape):
    return tuple(jnp.broadcast_to(jnp.asarray(i, jnp.int32), shape) for i in index)
