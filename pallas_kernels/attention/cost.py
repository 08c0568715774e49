"""What attention costs at least."""

import jax
import numpy as np
from jax.core import Tracer

from pallas_kernels.common.cost import Cost, bytes_of, itemsize


def cost(q, cache, *, lengths, page_table=None, window=None, **_) -> Cost:
    """Of a call with these arguments: the keys and values of every row in, queries in, the result out.

    Each row counts as a sequence of its own. Lengths that are not known (traced, or a `jax.ShapeDtypeStruct`) count as
    the cache's capacity.
    """
    rows, heads, head_dim = q.shape
    if isinstance(lengths, Tracer | jax.ShapeDtypeStruct):
        lengths = np.full(rows, cache.capacity(page_table))
    keys = int(np.minimum(np.asarray(lengths), window or cache.capacity(page_table)).sum())
    kv_bytes = 2 * keys * cache.k.shape[1] * head_dim * itemsize(cache.k.dtype)
    return Cost(kv_bytes + 2 * bytes_of(q), 4 * heads * keys * head_dim)
