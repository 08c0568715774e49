"""out and down: a projection + optional bias + optional residual add, with the next norm deferred, one launch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.common import checks, choose_tiles, weights
from pallas_kernels.common import implementation as impl
from pallas_kernels.common.calls import MAX_ROWS, StreamOptions, check_format, in_launches, joined, stream_shape
from pallas_kernels.common.deferred_norm import DeferredNorm
from pallas_kernels.common.fixed_point import FixedPointRows, Rows, check_bits
from pallas_kernels.common.fixed_point import check as check_rows
from pallas_kernels.common.prefetch import PREFETCH_BYTES, check_prefetch
from pallas_kernels.common.stream_space import RUNS_OF_SPLIT_STREAM
from pallas_kernels.common.stream_tiles import StreamShape, Tiles
from pallas_kernels.common.weights import Weight
from pallas_kernels.projection import reference, triton


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StreamOptions):
    """What is static in a call."""

    op: str
    out_dtype: str
    norm_offset: float
    fixed_point: int | None


def shape_of(x: Rows, weight: Weight, **_) -> StreamShape:
    """The problem of one launch of a call with these arguments."""
    return stream_shape(x, weight)


def out(
    x: Rows,
    weight: Weight,
    *,
    residual: jax.Array | None = None,
    out_dtype: Any = None,
    norm: jax.Array | None = None,
    norm_offset: float = 0.0,
    fixed_point: int | None = None,
    prefetch: Weight | None = None,
    prefetch_bytes: int = PREFETCH_BYTES,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> jax.Array | tuple[DeferredNorm, jax.Array]:
    """The attention's output projection: x W^T + bias + residual.

    Sizes: B activation rows, N query heads, H head dimension, D model.

    Args:
        x: [B, N, H] or [B, N * H], bfloat16, float16 or float32, or in fixed point: what attention returned.
        weight: [D, N * H] of x's dtype, from `pack_linear`, with or without a bias [D].
        residual: [B, D] of x's dtype or float32, added in float32, or None.
        out_dtype: of the sum that is returned: float32, or x's (None). In float32 it is a residual stream that neither
            a layer nor a norm rounds, which `qkv`, `gate_up` and `head` take as it is.
        norm: [D], any float dtype: the weight of the RMSNorm that comes next (Zhang and Sennrich 2019), to be deferred:
            the sum then comes back as a `DeferredNorm` and in float32. `qkv`, `gate_up` and `head` take that in place
            of x and of their own norm's weight. None for the sum itself.
        norm_offset: added to the norm's weight (1.0 for Gemma).
        fixed_point: 16 or 8 for the `DeferredNorm`'s x in fixed point of so many bits, as `fixed_point_bits` has it of
            the next kernel; it comes as floats all the same of more than 256 rows, or where the tiles leave a program
            no whole runs of 16. There is no gradient of it: differentiating raises. None for floats.
        prefetch: the weight that the next kernel streams: this kernel's programs, when their own loads are done, ask
            for its first `prefetch_bytes` to be in L2, so that memory has work between the two. None asks for nothing.
        implementation: 'triton', 'xla', 'interpret', or None to choose by device (`resolve_implementation`).
        tiles: how to cut the kernel; None takes the tuned ones or the heuristic's.

    Returns:
        [B, D] of `out_dtype`; sums are float32. With `norm`: (DeferredNorm of x's dtype, [B, D] float32).

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it.

    Any number of rows; a launch takes several at a time. Gradients go through the reference. Works under jit, vmap and
    shard_map (pass `check_vma=False`).
    """
    if not isinstance(x, FixedPointRows):
        checks.array("x", x)
        if len(x.shape) == 3:
            checks.shape("x", x, ("B", "N", "H"))
            x = x.reshape(x.shape[0], -1)
    return _projection(
        "out", x, weight, residual, out_dtype, norm, norm_offset, fixed_point, prefetch, prefetch_bytes,
        implementation, tiles,
    )  # fmt: skip


def down(
    x: Rows,
    weight: Weight,
    *,
    residual: jax.Array | None = None,
    out_dtype: Any = None,
    norm: jax.Array | None = None,
    norm_offset: float = 0.0,
    fixed_point: int | None = None,
    prefetch: Weight | None = None,
    prefetch_bytes: int = PREFETCH_BYTES,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> jax.Array | tuple[DeferredNorm, jax.Array]:
    """The MLP's down projection: x W^T + bias + residual.

    Sizes: B activation rows, F feed-forward, D model.

    Args:
        x: [B, F], bfloat16, float16 or float32, or in fixed point: what `gate_up` returned.
        weight: [D, F] of x's dtype, from `pack_linear`, with or without a bias [D].

    The other arguments, the results and the errors are those of `out`.
    """
    return _projection(
        "down", x, weight, residual, out_dtype, norm, norm_offset, fixed_point, prefetch, prefetch_bytes,
        implementation, tiles,
    )  # fmt: skip


def _projection(
    op, x, weight, residual, out_dtype, norm, norm_offset, fixed_point, prefetch, prefetch_bytes, implementation, tiles
):  # fmt: skip
    check_rows("x", x, ("B", "I"))
    dtype = checks.float_dtype("x", x)
    weights.check(weight, ("D", x.shape[1]), "pack_linear")
    checks.same_dtype("weight", weight, "x", x)
    check_format(x, weight)
    outputs = weight.shape[0]
    if residual is not None:
        checks.shape("residual", residual, (x.shape[0], outputs))
        if residual.dtype != jnp.float32:
            checks.same_dtype("residual", residual, "x", x)
    if norm is not None:
        checks.norm_weight("norm", norm, outputs)
    fixed_point = check_bits("fixed_point", fixed_point)
    if fixed_point is not None and norm is None:
        raise ValueError(f"fixed_point: expected None without a norm, got {fixed_point}")
    if x.shape[0] > MAX_ROWS:  # all launches alike, whatever tiles each has
        fixed_point = None
    norm_offset = checks.number("norm_offset", norm_offset)
    prefetch_bytes = check_prefetch(prefetch, prefetch_bytes)
    out_dtype = checks.one_of_dtypes("out_dtype", dtype if out_dtype is None else out_dtype, (dtype, "float32"))
    chosen = impl.resolve(implementation)
    kernel = reference.projection if chosen == "xla" else triton.projection

    def launch(x, residual):
        shape = shape_of(x, weight)
        options = Options(
            shape=shape,
            tiles=choose_tiles.resolve(op, tiles, shape, RUNS_OF_SPLIT_STREAM),
            interpret=chosen == "interpret",
            prefetch_bytes=prefetch_bytes,
            op=op,
            out_dtype=out_dtype,
            norm_offset=norm_offset,
            fixed_point=fixed_point,
        )
        operands = dict(x=x, weight=weight, residual=residual, norm=norm, prefetch=prefetch)
        return impl.call(kernel, reference.projection, options, operands)

    return in_launches(chosen, launch, x, residual, join=joined if norm is None else _joined_deferred)


def _joined_deferred(parts):
    """As `joined`, where launches of other numbers of rows may sum their squares in other parts."""
    widest = max(deferred.squares.shape[1] for deferred, _ in parts)

    def padded(deferred):
        missing = widest - deferred.squares.shape[1]
        return DeferredNorm(x=deferred.x, squares=jnp.pad(deferred.squares, ((0, 0), (0, missing))))

    return joined([(padded(deferred), total) for deferred, total in parts])
