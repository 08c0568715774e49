"""What out and down cost at least."""

from pallas_kernels.common.cost import Cost, stream_cost
from pallas_kernels.common.tiles import StreamShape


def cost(shape: StreamShape, *, residual: bool = True) -> Cost:
    """Weight and x in, residual in, y out."""
    return stream_cost(shape, (2 if residual else 1) * shape.rows * shape.outputs * shape.itemsize)
