"""What out and down cost at least."""

from pallas_kernels.common.cost import Cost, bytes_of, itemsize, product_operations


def cost(x, weight, *, residual=None, out_dtype=None, norm=None, **_) -> Cost:
    """Of a call with these arguments: weight, x, residual and norm in; y out, with a norm in float32 as well."""
    rows, outputs = x.shape[0], x.shape[0] * weight.shape[0]
    if norm is None:
        out_bytes = outputs * itemsize(x.dtype if out_dtype is None else out_dtype)
    else:
        out_bytes = outputs * (itemsize(x.dtype) + itemsize("float32"))
    moved = bytes_of(x, residual, norm, weight.bias) + weight.nbytes + out_bytes
    return Cost(moved, product_operations(rows, weight))
