"""Pages of the KV caches that are measured: how many a sequence takes, and where they lie."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from experiments.bench.errors import UsageError


def pages_of(context: int, page_size: int) -> int:
    """Pages that so many positions of a sequence take; a contiguous cache, of page size 0, is one page a sequence."""
    return -(-context // page_size) if page_size else 1


def check_page_sizes(field: str, page_sizes: Iterable[int], context: int) -> None:
    """Raises where a page has room for all of a context: to the kernels, and to their tuned tiles, it is contiguous."""
    for size in page_sizes:
        if size >= context:
            raise UsageError(f"{field}: expected less than the context, {context}, got {size}")


def shuffled_table(key: jax.Array, sequences: int, pages: int) -> jax.Array:
    """A page table that uses every page of a pool once, int32 [sequences, pages], fixed by the key.

    The pages are one random cycle, so that with two or more of them none lies at its own place in the order of the
    sequences: no kernel profits from pages that are neighbours.
    """
    order = jax.random.permutation(key, jnp.arange(sequences * pages, dtype=jnp.int32))
    return jnp.zeros_like(order).at[order].set(jnp.roll(order, -1)).reshape(sequences, pages)
