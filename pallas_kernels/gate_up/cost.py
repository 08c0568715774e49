"""What gate_up costs at least."""

from pallas_kernels.common.cost import Cost, stream_cost
from pallas_kernels.common.tiles import StreamShape


def cost(shape: StreamShape) -> Cost:
    """Weights, norm and x in, the product out."""
    return stream_cost(shape, (shape.rows * shape.outputs + shape.inputs) * shape.itemsize)
