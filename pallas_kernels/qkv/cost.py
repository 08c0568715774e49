"""What qkv costs at least."""

from pallas_kernels.common.calls import rows_of
from pallas_kernels.common.cost import Cost, bytes_of, itemsize, product_operations


def cost(x, norm, weight, cache, **_) -> Cost:
    """Of a call with these arguments: weight, norm and x in; q to memory, k and v to the cache."""
    rows = rows_of(x)
    keys = rows * cache.k.shape[1] * cache.k.shape[3]  # and as many values
    queries = 2 * rows * weight.shape[0] - 2 * keys
    out = queries * itemsize(weight.dtype) + keys * (itemsize(cache.k.dtype) + itemsize(cache.v.dtype))
    return Cost(bytes_of(x, norm, weight.bias) + weight.nbytes + out, product_operations(rows, weight))
