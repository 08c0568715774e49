"""What attention costs at least."""

from pallas_kernels.attention.tiles import AttentionShape
from pallas_kernels.common.cost import Cost


def cost(shape: AttentionShape, *, keys: int) -> Cost:
    """Keys and values of `keys` positions for every row (each its own sequence), queries in, the result out."""
    kv_bytes = 2 * shape.rows * shape.kv_heads * keys * shape.head_dim * shape.itemsize
    q_bytes = 2 * shape.rows * shape.heads * shape.head_dim * shape.itemsize
    return Cost(kv_bytes + q_bytes, 4 * shape.rows * shape.heads * keys * shape.head_dim)
