"""Asking for a later kernel's weights early, so that memory has work while this kernel waits or winds down."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.common import checks, hooks
from pallas_kernels.common.quantised import QuantisedWeight
from pallas_kernels.common.weights import DenseWeight, Weight

LINE_BYTES = 128
PREFETCH_BYTES = 4 << 20
"""About what memory delivers between two kernels; more delays the loads that are still under way."""


def check_prefetch(weight: Weight | None, limit_bytes: int) -> int:
    """`limit_bytes`; raises unless a later weight, or none, and a number of bytes were given."""
    if weight is not None:
        if not isinstance(weight, QuantisedWeight):
            checks.instance("prefetch", weight, DenseWeight, " or None")
        checks.array("prefetch", weight.values)
    return checks.whole("prefetch_bytes", limit_bytes, 0)


def flat_values(weight: Weight | None) -> jax.Array | None:
    """The weight's values as one dimension (no copy), or None."""
    return None if weight is None else weight.values.reshape(-1)


def prefetch(ref, program, *, programs: int, limit_bytes: int) -> None:
    """Requests one program's share of the first `limit_bytes` of a flat ref into L2, and does not wait.

    Args:
        ref: [elements].
        program: which of `programs` this is (traced); one outside [0, programs) requests nothing.
    """
    itemsize = jnp.dtype(ref.dtype).itemsize
    lines = min(limit_bytes, ref.shape[0] * itemsize) // LINE_BYTES
    if not lines or programs < 1:
        return
    share = pl.cdiv(lines, programs)

    @pl.when((program >= 0) & (program < programs))
    def _():
        first = jnp.minimum(program * share, lines - share)
        hooks.prefetch_l2(ref.at[first * (LINE_BYTES // itemsize)], share * LINE_BYTES)
