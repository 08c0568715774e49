"""gate_up: RMSNorm + gate and up projections + activation and product, one launch (with tensor cores two)."""

import dataclasses

import jax

from pallas_kernels.common import checks, weighted
from pallas_kernels.common import implementation as impl
from pallas_kernels.common.arithmetic import ACTIVATIONS
from pallas_kernels.common.prefetch import PREFETCH_BYTES
from pallas_kernels.common.tiles import StreamShape, Tiles
from pallas_kernels.common.weighted import Weighted
from pallas_kernels.common.weights import DenseWeight
from pallas_kernels.gate_up import reference, triton
from pallas_kernels.gate_up import tiles as gate_up_tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is static in a call."""

    eps: float
    norm_offset: float
    activation: str
    shape: StreamShape
    tiles: Tiles
    interpret: bool
    prefetch_bytes: int


def gate_up(
    x: jax.Array | Weighted,
    norm: jax.Array | None,
    weight: DenseWeight,
    *,
    activation: str = "silu",
    eps: float = 1e-5,
    norm_offset: float = 0.0,
    prefetch: DenseWeight | None = None,
    prefetch_bytes: int = PREFETCH_BYTES,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> jax.Array:
    """RMSNorm, the gate and up projections, and activation(gate) * up (Shazeer 2020).

    Sizes: B rows (1 to 16), D model, F feed-forward.

    Args:
        x: [B, D] of the weight's dtype, or float32: the residual stream, not yet normalised; or `Weighted` rows of
            the weight's dtype, as `out` and `down` return them with `norm`: then no launch and no pass is left of this
            norm.
        norm: [D], any float dtype: the weight of RMSNorm (Zhang and Sennrich 2019); None with `Weighted` rows.
        weight: rows [F, 2, D], bfloat16, float16 or float32, from `pack_gate_up`, with or without biases [F, 2].
        activation: 'silu' or 'gelu_tanh'.
        eps: added to the mean square.
        norm_offset: added to the norm's weight (1.0 for Gemma); `Weighted` rows have it in them.
        prefetch: the weight that the next kernel streams: this kernel's programs, when their own loads are done, ask
            for its first `prefetch_bytes` to be in L2, so that memory has work between the two. None asks for nothing.
        implementation: 'triton', 'xla', 'interpret', or None to choose by device.
        tiles: how to cut the kernel; None takes the tuned ones or the heuristic.

    Returns:
        [B, F] of the weight's dtype; sums and activation are float32.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it.

    Gradients go through the reference. Works under jit, vmap and shard_map (pass `check_vma=False`).
    """
    rows = weighted.check(x, norm)
    checks.float_dtype("x", rows)
    checks.shape("weight.rows", weight.rows, ("F", 2, rows.shape[1]))
    dtype = weighted.weight_dtype(weight.rows, x)
    if weight.bias is not None:
        checks.shape("weight.bias", weight.bias, (weight.rows.shape[0], 2))
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    chosen = impl.resolve(implementation)
    shape = StreamShape(
        rows=rows.shape[0],
        outputs=weight.rows.shape[0],
        inputs=rows.shape[1],
        groups=2,
        dtype=dtype,
        norm=norm is not None,
    )
    options = Options(
        eps=eps,
        norm_offset=norm_offset,
        activation=activation,
        shape=shape,
        tiles=gate_up_tiles.resolve(tiles, shape),
        interpret=chosen == "interpret",
        prefetch_bytes=prefetch_bytes,
    )
    kernel = reference.gate_up if chosen == "xla" else triton.gate_up
    return impl.call(kernel, reference.gate_up, options, dict(x=x, norm=norm, weight=weight, prefetch=prefetch))
