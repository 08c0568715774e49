"""What qkv costs at least."""

from pallas_kernels.common.cost import Cost, stream_cost
from pallas_kernels.common.tiles import StreamShape


def cost(shape: StreamShape) -> Cost:
    """Weights, norm and x in; q to memory, k and v to the cache."""
    return stream_cost(shape, (shape.rows * shape.outputs * shape.groups + shape.inputs) * shape.itemsize)
