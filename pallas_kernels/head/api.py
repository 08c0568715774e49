"""head: final RMSNorm + vocabulary projection, and the argmax or the logits."""

import dataclasses

import jax

from pallas_kernels.common import checks, choose_tiles, deferred_norm, weights
from pallas_kernels.common import implementation as impl
from pallas_kernels.common.calls import StreamOptions, check_format, in_launches, stream_shape
from pallas_kernels.common.deferred_norm import DeferredNorm
from pallas_kernels.common.stream_space import STREAM
from pallas_kernels.common.stream_tiles import StreamShape, Tiles
from pallas_kernels.common.weights import Weight
from pallas_kernels.head import reference, triton


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StreamOptions):
    """What is static in a call."""

    eps: float
    norm_offset: float
    soft_cap: float | None


def shape_of(x: jax.Array | DeferredNorm, norm: jax.Array | None, weight: Weight, **_) -> StreamShape:
    """The problem of one launch of a call with these arguments."""
    return stream_shape(x, weight, norm=norm is not None)


def head(
    x: jax.Array | DeferredNorm,
    norm: jax.Array | None,
    weight: Weight,
    *,
    soft_cap: float | None = None,
    eps: float = 1e-5,
    norm_offset: float = 0.0,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Final RMSNorm, the vocabulary projection and its argmax, with no logits in memory.

    Sizes: B activation rows, D model, V vocabulary.

    Args:
        x: [B, D] of the weight's dtype, or float32: the residual stream, not yet normalised; or a `DeferredNorm` of
            the weight's dtype, as `out` and `down` return it with `norm`: then no launch and no pass is left of this
            norm.
        norm: [D], any float dtype: the weight of RMSNorm (Zhang and Sennrich 2019); None with a `DeferredNorm`.
        weight: [V, D], bfloat16, float16 or float32: `pack_linear` of an lm_head kernel [D, V], or
            `DenseWeight(values=embedding_table)`; with or without a bias [V].
        soft_cap: logits become soft_cap * tanh(logits / soft_cap) (Gemma 2), above 0, or None.
        eps: added to the mean square; above 0.
        norm_offset: added to the norm's weight (1.0 for Gemma); a `DeferredNorm` has it in it.
        implementation: 'triton', 'xla', 'interpret', or None to choose by device (`resolve_implementation`).
        tiles: how to cut the kernel; None takes the tuned ones or the heuristic's.

    Returns:
        (token int32 [B], its logit float32 [B]). Of equal logits the lowest token wins, and NaN counts as the
        largest, as in `jnp.argmax`.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it.

    Any number of rows; a launch takes several at a time. Gradients (of the logit) go through the reference. Works under
    jit, vmap and shard_map (pass `check_vma=False`).
    """
    return _head("head", x, norm, weight, soft_cap, eps, norm_offset, implementation, tiles)


def head_logits(
    x: jax.Array | DeferredNorm,
    norm: jax.Array | None,
    weight: Weight,
    *,
    soft_cap: float | None = None,
    eps: float = 1e-5,
    norm_offset: float = 0.0,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> jax.Array:
    """Final RMSNorm and the vocabulary projection: all logits.

    Sizes, arguments and errors are those of `head`.

    Returns:
        The logits, float32 [B, V].
    """
    return _head("head_logits", x, norm, weight, soft_cap, eps, norm_offset, implementation, tiles)


def _head(name, x, norm, weight, soft_cap, eps, norm_offset, implementation, tiles):
    rows = deferred_norm.check(x, norm)
    weights.check(weight, ("V", rows.shape[1]), "pack_linear")
    deferred_norm.weight_dtype(weight, x)
    check_format(x, weight)
    soft_cap = None if soft_cap is None else checks.positive("soft_cap", soft_cap)
    eps, norm_offset = checks.positive("eps", eps), checks.number("norm_offset", norm_offset)
    chosen = impl.resolve(implementation)
    module = reference if chosen == "xla" else triton

    def launch(x):
        shape = shape_of(x, norm, weight)
        options = Options(
            shape=shape,
            tiles=choose_tiles.resolve("head", tiles, shape, STREAM),
            interpret=chosen == "interpret",
            eps=eps,
            norm_offset=norm_offset,
            soft_cap=soft_cap,
        )
        return impl.call(getattr(module, name), getattr(reference, name), options, dict(x=x, norm=norm, weight=weight))

    return in_launches(chosen, launch, x)
