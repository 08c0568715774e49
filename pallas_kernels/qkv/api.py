"""qkv: RMSNorm + QKV projection + RoPE + KV-cache write, one launch (with tensor cores two)."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.common import checks, deferred_norm, weights
from pallas_kernels.common import implementation as impl
from pallas_kernels.common.calls import StreamOptions, check_format, launches, rows_in, stream_shape
from pallas_kernels.common.deferred_norm import DeferredNorm
from pallas_kernels.common.eight_bits import check_device
from pallas_kernels.common.kv_cache import KVCache, check_places
from pallas_kernels.common.prefetch import PREFETCH_BYTES, check_prefetch
from pallas_kernels.common.stream_tiles import StreamShape, Tiles
from pallas_kernels.common.weights import Weight
from pallas_kernels.qkv import reference, triton
from pallas_kernels.qkv import tiles as qkv_tiles
from pallas_kernels.rope_and_cache.api import check_heads, check_qk_norm, check_rotation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StreamOptions):
    """What is static in a call."""

    num_heads: int
    eps: float
    norm_offset: float


def shape_of(x: jax.Array | DeferredNorm, norm: jax.Array | None, weight: Weight, *_, **__) -> StreamShape:
    """The problem of one launch of a call with these arguments."""
    return stream_shape(x, weight, norm=norm is not None)


def qkv(
    x: jax.Array | DeferredNorm,
    norm: jax.Array | None,
    weight: Weight,
    cache: KVCache,
    *,
    positions: jax.Array,
    rope: tuple[jax.Array, jax.Array] | None,
    sequence: jax.Array | None = None,
    page_table: jax.Array | None = None,
    q_norm: jax.Array | None = None,
    k_norm: jax.Array | None = None,
    eps: float = 1e-5,
    norm_offset: float = 0.0,
    prefetch: Weight | None = None,
    prefetch_bytes: int = PREFETCH_BYTES,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> tuple[jax.Array, KVCache]:
    """RMSNorm, the QKV projection, RoPE and the write into the KV cache.

    An activation row is one (sequence, position); several rows may belong to one sequence. Sizes: B rows, D model, N
    query heads, K kv heads, H head dimension, P pages of Z positions.

    Args:
        x: [B, D] of the weight's dtype, or float32: the residual stream, not yet normalised; or a `DeferredNorm` of
            the weight's dtype, as `out` and `down` return it with `norm`: then no launch and no pass is left of this
            norm.
        norm: [D], any float dtype: the weight of RMSNorm (Zhang and Sennrich 2019); None with a `DeferredNorm`.
        weight: [(N + 2K) * H / 2, 2, D], bfloat16, float16 or float32, from `pack_qkv`; its bias is added before
            QK-norm.
        cache: k and v [P, K, Z, H], of any dtype of a `KVCache`: what is written is rounded to it. Donate it
            (`donate_argnums`) and it is updated in place, else it is copied.
        positions: int32 [B], the position of each row in its sequence; a padding row, at -1, has its q computed and
            writes nothing. A row that has no place in the cache (a position beyond it, or without a page), or beyond
            the table of `rope`, is an error where that is known; under jit its q is NaN, and what it writes.
        rope: (cos, sin), each float32 [S, R / 2] by position, R the rotated dimensions of a head (split halves, Su et
            al. 2021), those that the weight was packed for (`rotary_dim`); or None for no rotation.
        sequence: int32 [B], the sequence of each row; None for row i of sequence i. One that is not there is an error
            where it is known, as a position without a place under jit.
        page_table: int32 [sequences, pages of a sequence], -1 where there is no page yet, or None for a contiguous
            cache (page = sequence).
        q_norm, k_norm: [H], the weights of a per-head RMSNorm of q and k before RoPE (Qwen 3, Gemma 3), or None.
        eps: added to the mean square, in both norms; above 0.
        norm_offset: added to the norms' weights (1.0 for Gemma); a `DeferredNorm` has it in it.
        prefetch: the weight that is streamed next: this kernel's programs, when their own loads are done, ask for its
            first `prefetch_bytes` to be in L2, so that memory has work between the two. None asks for nothing.
        implementation: 'triton', 'xla', 'interpret', or None to choose by device (`resolve_implementation`).
        tiles: how to cut the kernel; None takes the tuned ones or the heuristic's.

    Returns:
        (q [B, N, H] of the weight's dtype, rotated; the cache with the rows' keys and values written).

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it. Of arrays, the values
            of `positions`, `sequence` and `page_table` are looked at, in calls outside jit, which wait for them.

    Any number of rows; a launch takes several at a time. Two rows of one (sequence, position) are an error where that
    is known, undefined under jit. Gradients go through the reference. Works under jit, vmap and shard_map (pass
    `check_vma=False`); under vmap an unbatched cache comes back once per batch entry.
    """
    rows = deferred_norm.check(x, norm)
    batch, width = rows.shape
    weights.check(weight, ("(N + 2K) * H / 2", 2, width), "pack_qkv")
    deferred_norm.weight_dtype(weight, x)
    check_format(x, weight)
    checks.instance("cache", cache, KVCache)
    cache.check()
    num_heads, head_dim = check_heads("weight", weight.shape[0], cache), cache.k.shape[3]
    check_places(cache, positions, sequence, page_table, batch)
    check_rotation(rope, positions, batch, head_dim, weights.checked_rotary_dim(head_dim, weight.rotary_dim))
    check_qk_norm(q_norm, k_norm, head_dim)
    eps, norm_offset = checks.positive("eps", eps), checks.number("norm_offset", norm_offset)
    prefetch_bytes = check_prefetch(prefetch, prefetch_bytes)
    chosen = impl.resolve(implementation)
    check_device(chosen, cache.k, cache.v)
    kernel = reference.qkv if chosen == "xla" else triton.qkv

    def launch(x, positions, sequence, cache):
        shape = shape_of(x, norm, weight)
        options = Options(
            shape=shape,
            tiles=qkv_tiles.resolve(tiles, shape, None if q_norm is None else head_dim),
            interpret=chosen == "interpret",
            prefetch_bytes=prefetch_bytes,
            num_heads=num_heads,
            eps=eps,
            norm_offset=norm_offset,
        )
        operands = dict(
            x=x, norm=norm, weight=weight, cache=cache, positions=positions, sequence=sequence, page_table=page_table,
            rope=rope, q_norm=q_norm, k_norm=k_norm, prefetch=prefetch,
        )  # fmt: skip
        return impl.call(kernel, reference.qkv, options, operands)

    groups = launches(chosen, batch)
    if len(groups) == 1:
        return launch(x, positions, sequence, cache)
    if sequence is None:
        sequence = jnp.arange(batch, dtype=jnp.int32)
    queries = []
    for group in groups:  # in turn: each writes into the cache
        part_x, part_positions, part_sequence = rows_in((x, positions, sequence), group)
        q, cache = launch(part_x, part_positions, part_sequence, cache)
        queries.append(q)
    return jnp.concatenate(queries), cache
