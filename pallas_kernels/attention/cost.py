"""What attention costs at least."""

import jax
import numpy as np
from jax.core import Tracer

from pallas_kernels.common.cost import Cost, bytes_of, itemsize


def cost(q, cache, *, lengths, page_table=None, window=None, **_) -> Cost:
    """Of a call with these arguments: the keys and values of every row in, queries in, the result out.

    Each row counts as a sequence of its own, of which the keys that any of its tokens attends to are read once. Lengths
    that are not known (traced, or a `jax.ShapeDtypeStruct`) count as the cache's capacity.
    """
    *by_token, heads, head_dim = q.shape
    capacity = cache.capacity(page_table)
    if isinstance(lengths, Tracer | jax.ShapeDtypeStruct):
        lengths = np.full(by_token, capacity)
    lengths = np.sort(np.asarray(lengths).reshape(by_token[0], -1), axis=1)
    # In rising order each token attends to what the one before it did not by as much as it is longer, or its window.
    keys = int(np.minimum(np.diff(lengths, axis=1, prepend=0), window or capacity).sum())
    products = int(np.minimum(lengths, window or capacity).sum())
    kv_bytes = keys * cache.k.shape[1] * head_dim * (itemsize(cache.k.dtype) + itemsize(cache.v.dtype))
    return Cost(kv_bytes + 2 * bytes_of(q), 4 * heads * products * head_dim)
