"""What a kernel costs at least: bytes that must move and operations that must be done."""

from typing import NamedTuple

from pallas_kernels.common.tiles import StreamShape


class Cost(NamedTuple):
    """The least that a call must do.

    Attributes:
        bytes: read from and written to device memory, each once.
        operations: multiplications and additions.
    """

    bytes: int
    operations: int

    def floor_us(self, gbps: float) -> float:
        """Microseconds that the bytes take at `gbps` (1e9 bytes a second)."""
        return self.bytes / gbps / 1e3


def stream_cost(shape: StreamShape, extra_bytes: int = 0) -> Cost:
    """Weights and activations in, `extra_bytes` for the rest (outputs, residual)."""
    moved = shape.weight_bytes + shape.rows * shape.inputs * shape.itemsize + extra_bytes
    return Cost(moved, 2 * shape.rows * shape.outputs * shape.groups * shape.inputs)
