"""What the head costs at least."""

from pallas_kernels.common.cost import Cost, stream_cost
from pallas_kernels.common.tiles import StreamShape


def cost(shape: StreamShape, *, logits: bool = False) -> Cost:
    """Weight, norm and x in; the token and its logit out, or with `logits` all of them, in float32."""
    out = 4 * shape.rows * shape.outputs if logits else 8 * shape.rows
    return stream_cost(shape, shape.inputs * shape.itemsize + out)
