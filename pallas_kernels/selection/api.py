"""top_k_top_p: which tokens top-k and top-p keep, one launch."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.common import checks
from pallas_kernels.common import implementation as impl
from pallas_kernels.selection import reference, triton

LANES, LEAST_LANES, MOST_LANES = 2048, 16, 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is static in a call."""

    lanes: int
    interpret: bool


def top_k_top_p(
    scaled: jax.Array,
    top_k: jax.Array | None,
    top_p: jax.Array | None,
    *,
    implementation: str | None = None,
    lanes: int = LANES,
) -> jax.Array:
    """Whether top-k, then top-p on what that left, keep a token: bool [B, V], at least one in each row.

    Args:
        scaled: float32 [B, V], logits. -0.0 equals 0.0; NaN counts as the largest, and as equal to NaN.
        top_k: int32 [B], 1 to V, V where off; None if it is off in all rows.
        top_p: float32 [B], 0 to 1, 1 where off; None if it is off in all rows. The fewest most likely tokens are kept
            whose mass is not less than top_p of the whole; the most likely one always.
        implementation: 'triton', 'xla', 'interpret', or None to choose by device (`resolve_implementation`).
        lanes: how many logits a program reads at once: a power of 2 from 16 to 8192. The result does not depend on it.

    Of equal logits those of the lowest ids are kept. A row's result does not depend on the other rows, nor on whether
    a stage that is off for it is None. All implementations keep the same, but for what exp rounds: by XLA on a CPU and
    by libdevice it may differ in the last bit. Works under jit and vmap.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it. Of arrays, the values
            of `top_k` and `top_p` are looked at, in calls outside jit, which wait for them.
    """
    checks.shape("scaled", scaled, ("B", "V"))
    checks.dtype_is("scaled", scaled, jnp.float32)
    rows, vocabulary = scaled.shape
    if top_k is not None:
        checks.indices("top_k", top_k, (rows,), 1, vocabulary + 1)
    if top_p is not None:
        checks.fractions("top_p", top_p, (rows,))
    if checks.whole("lanes", lanes, LEAST_LANES) not in (sizes := _powers_of_2(LEAST_LANES, MOST_LANES)):
        raise ValueError(f"lanes: expected one of {', '.join(map(str, sizes))}, got {lanes}")
    chosen = impl.resolve(implementation)
    options = Options(lanes=lanes, interpret=chosen == "interpret")
    kernel = reference.top_k_top_p if chosen == "xla" else triton.top_k_top_p
    return impl.call(kernel, reference.top_k_top_p, options, dict(scaled=scaled, top_k=top_k, top_p=top_p))


def _powers_of_2(low: int, high: int) -> list[int]:
    return [2**i for i in range(low.bit_length() - 1, high.bit_length())]
