"""What gate_up costs at least."""

from pallas_kernels.common.calls import rows_of
from pallas_kernels.common.cost import Cost, bytes_of, itemsize, product_operations


def cost(x, norm, weight, **_) -> Cost:
    """Of a call with these arguments: weight, norm and x in, the product out."""
    rows = rows_of(x)
    product = rows * weight.shape[0] * itemsize(weight.dtype)
    return Cost(bytes_of(x, norm, weight.bias) + weight.nbytes + product, product_operations(rows, weight))
