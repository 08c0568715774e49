"""What a call costs at least: bytes that must move and operations that must be done."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.common import checks


class Cost(NamedTuple):
    """The least that a call must do.

    Attributes:
        bytes: read from and written to device memory, each once.
        operations: multiplications and additions.
    """

    bytes: int
    operations: int

    def floor_us(self, gbps: float) -> float:
        """Microseconds that the bytes take at `gbps` (1e9 bytes a second, above 0)."""
        checks.positive("gbps", gbps)
        return self.bytes / gbps / 1e3


def bytes_of(*trees: Any) -> int:
    """Bytes of all arrays in these pytrees; arrays may be `jax.ShapeDtypeStruct`s."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))


def itemsize(dtype: Any) -> int:
    return jnp.dtype(dtype).itemsize


def product_operations(rows: int, weight: Any) -> int:
    """Of `rows` activation rows times a weight."""
    count = 2 * rows
    for size in weight.shape:
        count *= size
    return count
