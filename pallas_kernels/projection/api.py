"""out and down: a projection + optional bias + optional residual add, one launch."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.common import checks
from pallas_kernels.common import implementation as impl
from pallas_kernels.common.prefetch import PREFETCH_BYTES
from pallas_kernels.common.tiles import StreamShape, Tiles
from pallas_kernels.common.weighted import Weighted
from pallas_kernels.common.weights import DenseWeight
from pallas_kernels.projection import reference, triton
from pallas_kernels.projection import tiles as projection_tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is static in a call."""

    op: str
    shape: StreamShape
    tiles: Tiles
    interpret: bool
    prefetch_bytes: int
    wide: bool
    norm_offset: float


def out(
    x: jax.Array,
    weight: DenseWeight,
    *,
    residual: jax.Array | None = None,
    wide: bool = False,
    norm: jax.Array | None = None,
    norm_offset: float = 0.0,
    prefetch: DenseWeight | None = None,
    prefetch_bytes: int = PREFETCH_BYTES,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> jax.Array | tuple[Weighted, jax.Array]:
    """The attention's output projection: x W^T + bias + residual.

    Sizes: B rows (1 to 16), N query heads, H head dimension, D model.

    Args:
        x: [B, N, H] or [B, N * H], bfloat16, float16 or float32: what attention returned.
        weight: rows [D, N * H] of x's dtype, from `pack_linear`, with or without a bias [D].
        residual: [B, D] of x's dtype or float32, added in float32, or None.
        wide: whether the sum is returned in float32: a residual stream that neither a layer nor a norm rounds, which
            `qkv`, `gate_up` and `head` take as it is.
        norm: [D], any float dtype: the weight of the RMSNorm that comes next (Zhang and Sennrich 2019). The sum then
            comes back as `Weighted` rows, and wide whether or not `wide` says so; `qkv`, `gate_up` and `head` take
            such rows in place of x and of their own norm's weight. None for the sum itself.
        norm_offset: added to the norm's weight (1.0 for Gemma).
        prefetch: the weight that the next kernel streams: this kernel's programs, when their own loads are done, ask
            for its first `prefetch_bytes` to be in L2, so that memory has work between the two. None asks for nothing.
        implementation: 'triton', 'xla', 'interpret', or None to choose by device.
        tiles: how to cut the kernel; None takes the tuned ones or the heuristic.

    Returns:
        [B, D] of x's dtype, or float32 with `wide`; sums are float32. With `norm`: (Weighted, [B, D] float32).

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it.

    Gradients go through the reference. Works under jit, vmap and shard_map (pass `check_vma=False`).
    """
    if x.ndim == 3:
        x = x.reshape(x.shape[0], -1)
    return _projection(
        "out", x, weight, residual, wide, norm, norm_offset, prefetch, prefetch_bytes, implementation, tiles
    )


def down(
    x: jax.Array,
    weight: DenseWeight,
    *,
    residual: jax.Array | None = None,
    wide: bool = False,
    norm: jax.Array | None = None,
    norm_offset: float = 0.0,
    prefetch: DenseWeight | None = None,
    prefetch_bytes: int = PREFETCH_BYTES,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> jax.Array | tuple[Weighted, jax.Array]:
    """The MLP's down projection: x W^T + bias + residual.

    As `out`, with x [B, F] (what `gate_up` returned), weight rows [D, F], and [B, D] back.
    """
    return _projection(
        "down", x, weight, residual, wide, norm, norm_offset, prefetch, prefetch_bytes, implementation, tiles
    )


def _projection(
    op, x, weight, residual, wide, norm, norm_offset, prefetch, prefetch_bytes, implementation, tiles
):  # fmt: skip
    checks.shape("x", x, ("B", "I"))
    checks.rows("x", x)
    dtype = checks.float_dtype("x", x)
    checks.shape("weight.rows", weight.rows, ("D", x.shape[1]))
    checks.same_dtype("weight.rows", weight.rows, "x", x)
    outputs = weight.rows.shape[0]
    if weight.bias is not None:
        checks.shape("weight.bias", weight.bias, (outputs,))
    if residual is not None:
        checks.shape("residual", residual, (x.shape[0], outputs))
        if residual.dtype != jnp.float32:
            checks.same_dtype("residual", residual, "x", x)
    if norm is not None:
        checks.shape("norm", norm, (outputs,))
    chosen = impl.resolve(implementation)
    shape = StreamShape(rows=x.shape[0], outputs=outputs, inputs=x.shape[1], dtype=dtype)
    options = Options(
        op=op,
        shape=shape,
        tiles=projection_tiles.resolve(op, tiles, shape),
        interpret=chosen == "interpret",
        prefetch_bytes=prefetch_bytes,
        wide=wide,
        norm_offset=norm_offset,
    )
    kernel = reference.projection if chosen == "xla" else triton.projection
    return impl.call(
        kernel,
        reference.projection,
        options,
        dict(x=x, weight=weight, residual=residual, norm=norm, prefetch=prefetch),
    )
