"""head: final RMSNorm + vocabulary projection, and the argmax or the logits."""

import dataclasses

import jax

from pallas_kernels.common import checks, weighted
from pallas_kernels.common import implementation as impl
from pallas_kernels.common.tiles import StreamShape, Tiles
from pallas_kernels.common.weighted import Weighted
from pallas_kernels.common.weights import DenseWeight
from pallas_kernels.head import reference, triton
from pallas_kernels.head import tiles as head_tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is static in a call."""

    eps: float
    norm_offset: float
    soft_cap: float | None
    shape: StreamShape
    tiles: Tiles
    interpret: bool


def head(
    x: jax.Array | Weighted,
    norm: jax.Array | None,
    weight: DenseWeight,
    *,
    soft_cap: float | None = None,
    eps: float = 1e-5,
    norm_offset: float = 0.0,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Final RMSNorm, the vocabulary projection and its argmax, with no logits in memory.

    Sizes: B rows (1 to 16), D model, V vocabulary.

    Args:
        x: [B, D] of the weight's dtype, or float32: the residual stream, not yet normalised; or `Weighted` rows of
            the weight's dtype, as `out` and `down` return them with `norm`: then no launch and no pass is left of this
            norm.
        norm: [D], any float dtype: the weight of RMSNorm (Zhang and Sennrich 2019); None with `Weighted` rows.
        weight: rows [V, D], bfloat16, float16 or float32: `pack_linear` of an lm_head kernel [D, V], or
            `DenseWeight(rows=embedding_table)`; with or without a bias [V].
        soft_cap: logits become soft_cap * tanh(logits / soft_cap) (Gemma 2), or None.
        eps: added to the mean square.
        norm_offset: added to the norm's weight (1.0 for Gemma); `Weighted` rows have it in them.
        implementation: 'triton', 'xla', 'interpret', or None to choose by device.
        tiles: how to cut the kernel; None takes the tuned ones or the heuristic.

    Returns:
        (token int32 [B], its logit float32 [B]). Of equal logits the lowest token wins, and NaN counts as the
        largest, as in `jnp.argmax`.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it.

    Gradients (of the logit) go through the reference. Works under jit, vmap and shard_map (pass `check_vma=False`).
    """
    return _head("head", x, norm, weight, soft_cap, eps, norm_offset, implementation, tiles)


def head_logits(
    x: jax.Array | Weighted,
    norm: jax.Array | None,
    weight: DenseWeight,
    *,
    soft_cap: float | None = None,
    eps: float = 1e-5,
    norm_offset: float = 0.0,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> jax.Array:
    """As `head`, but returns the logits, float32 [B, V]."""
    return _head("head_logits", x, norm, weight, soft_cap, eps, norm_offset, implementation, tiles)


def _head(name, x, norm, weight, soft_cap, eps, norm_offset, implementation, tiles):
    rows = weighted.check(x, norm)
    checks.float_dtype("x", rows)
    checks.shape("weight.rows", weight.rows, ("V", rows.shape[1]))
    dtype = weighted.weight_dtype(weight.rows, x)
    vocabulary = weight.rows.shape[0]
    if weight.bias is not None:
        checks.shape("weight.bias", weight.bias, (vocabulary,))
    checks.positive("soft_cap", soft_cap)
    chosen = impl.resolve(implementation)
    shape = StreamShape(
        rows=rows.shape[0], outputs=vocabulary, inputs=rows.shape[1], dtype=dtype, norm=norm is not None
    )
    options = Options(
        eps=eps,
        norm_offset=norm_offset,
        soft_cap=soft_cap,
        shape=shape,
        tiles=head_tiles.resolve(tiles, shape),
        interpret=chosen == "interpret",
    )
    module = reference if chosen == "xla" else triton
    return impl.call(getattr(module, name), getattr(reference, name), options, dict(x=x, norm=norm, weight=weight))
