"""gate_up: RMSNorm + gate and up projections + activation and product, one launch (with tensor cores two)."""

import dataclasses

import jax

from pallas_kernels.common import checks, choose_tiles, deferred_norm, weights
from pallas_kernels.common import implementation as impl
from pallas_kernels.common.arithmetic import ACTIVATIONS
from pallas_kernels.common.calls import MAX_ROWS, StreamOptions, check_format, in_launches, stream_shape
from pallas_kernels.common.deferred_norm import DeferredNorm
from pallas_kernels.common.fixed_point import Rows, check_bits
from pallas_kernels.common.prefetch import PREFETCH_BYTES, check_prefetch
from pallas_kernels.common.stream_space import RUNS_OF_STREAM
from pallas_kernels.common.stream_tiles import StreamShape, Tiles
from pallas_kernels.common.weights import Weight
from pallas_kernels.gate_up import reference, triton


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StreamOptions):
    """What is static in a call."""

    eps: float
    norm_offset: float
    activation: str
    fixed_point: int | None


def shape_of(x: jax.Array | DeferredNorm, norm: jax.Array | None, weight: Weight, **_) -> StreamShape:
    """The problem of one launch of a call with these arguments."""
    return stream_shape(x, weight, norm=norm is not None)


def gate_up(
    x: jax.Array | DeferredNorm,
    norm: jax.Array | None,
    weight: Weight,
    *,
    activation: str = "silu",
    eps: float = 1e-5,
    norm_offset: float = 0.0,
    fixed_point: int | None = None,
    prefetch: Weight | None = None,
    prefetch_bytes: int = PREFETCH_BYTES,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> Rows:
    """RMSNorm, the gate and up projections, and activation(gate) * up (Shazeer 2020).

    Sizes: B activation rows, D model, F feed-forward.

    Args:
        x: [B, D] of the weight's dtype, or float32: the residual stream, not yet normalised; or a `DeferredNorm` of
            the weight's dtype, as `out` and `down` return it with `norm`: then no launch and no pass is left of this
            norm.
        norm: [D], any float dtype: the weight of RMSNorm (Zhang and Sennrich 2019); None with a `DeferredNorm`.
        weight: [F, 2, D], bfloat16, float16 or float32, from `pack_gate_up`, with or without biases [F, 2].
        activation: 'silu' or 'gelu_tanh'.
        eps: added to the mean square; above 0.
        norm_offset: added to the norm's weight (1.0 for Gemma); a `DeferredNorm` has it in it.
        fixed_point: 16 or 8 for the result in fixed point of so many bits, as `fixed_point_bits` has it
            of the next kernel; it comes as floats all the same of more than 256 rows, or where the tiles leave a
            program no whole runs of 16. There is no gradient of it: differentiating raises. None for floats.
        prefetch: the weight that the next kernel streams: this kernel's programs, when their own loads are done, ask
            for its first `prefetch_bytes` to be in L2, so that memory has work between the two. None asks for nothing.
        implementation: 'triton', 'xla', 'interpret', or None to choose by device (`resolve_implementation`).
        tiles: how to cut the kernel; None takes the tuned ones or the heuristic's.

    Returns:
        [B, F] of the weight's dtype, or `FixedPointRows`; sums and activation are float32.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it.

    Any number of rows; a launch takes several at a time. Gradients go through the reference. Works under jit, vmap and
    shard_map (pass `check_vma=False`).
    """
    rows = deferred_norm.check(x, norm)
    weights.check(weight, ("F", 2, rows.shape[1]), "pack_gate_up")
    deferred_norm.weight_dtype(weight, x)
    check_format(x, weight)
    checks.one_of("activation", activation, ACTIVATIONS)
    eps, norm_offset = checks.positive("eps", eps), checks.number("norm_offset", norm_offset)
    fixed_point = check_bits("fixed_point", fixed_point)
    if rows.shape[0] > MAX_ROWS:  # all launches alike, whatever tiles each has
        fixed_point = None
    prefetch_bytes = check_prefetch(prefetch, prefetch_bytes)
    chosen = impl.resolve(implementation)

    def launch(x):
        shape = shape_of(x, norm, weight)
        options = Options(
            shape=shape,
            tiles=choose_tiles.resolve("gate_up", tiles, shape, RUNS_OF_STREAM),
            interpret=chosen == "interpret",
            prefetch_bytes=prefetch_bytes,
            eps=eps,
            norm_offset=norm_offset,
            activation=activation,
            fixed_point=fixed_point,
        )
        kernel = reference.gate_up if chosen == "xla" else triton.gate_up
        return impl.call(kernel, reference.gate_up, options, dict(x=x, norm=norm, weight=weight, prefetch=prefetch))

    return in_launches(chosen, launch, x)
