"""What the head costs at least."""

from pallas_kernels.common.calls import rows_of
from pallas_kernels.common.cost import Cost, bytes_of, product_operations


def head(x, norm, weight, **_) -> Cost:
    """Of a call of `head`: weight, norm and x in, a token and its logit a row out."""
    return _cost(x, norm, weight, 8 * rows_of(x))


def head_logits(x, norm, weight, **_) -> Cost:
    """Of a call of `head_logits`: weight, norm and x in, all logits out, in float32."""
    return _cost(x, norm, weight, 4 * rows_of(x) * weight.shape[0])


def _cost(x, norm, weight, out_bytes: int) -> Cost:
    moved = bytes_of(x, norm, weight.bias) + weight.nbytes + out_bytes
    return Cost(moved, product_operations(rows_of(x), weight))
