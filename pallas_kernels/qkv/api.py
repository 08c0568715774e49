"""qkv: RMSNorm + QKV projection + RoPE + KV-cache write, one launch (with tensor cores two)."""

import dataclasses

import jax

from pallas_kernels.common import checks, weighted
from pallas_kernels.common import implementation as impl
from pallas_kernels.common.kv_cache import KVCache
from pallas_kernels.common.prefetch import PREFETCH_BYTES
from pallas_kernels.common.tiles import StreamShape, Tiles
from pallas_kernels.common.weighted import Weighted
from pallas_kernels.common.weights import DenseWeight
from pallas_kernels.qkv import reference, triton
from pallas_kernels.qkv import tiles as qkv_tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is static in a call."""

    num_heads: int
    eps: float
    norm_offset: float
    shape: StreamShape
    tiles: Tiles
    interpret: bool
    prefetch_bytes: int


def qkv(
    x: jax.Array | Weighted,
    norm: jax.Array | None,
    weight: DenseWeight,
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
    prefetch: DenseWeight | None = None,
    prefetch_bytes: int = PREFETCH_BYTES,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> tuple[jax.Array, KVCache]:
    """RMSNorm, the QKV projection, RoPE and the write into the KV cache.

    A row is one (sequence, position); several rows may belong to one sequence. Sizes: B rows (1 to 16), D model,
    N query heads, K kv heads, H head dimension, P pages of Z positions.

    Args:
        x: [B, D] of the weight's dtype, or float32: the residual stream, not yet normalised; or `Weighted` rows of
            the weight's dtype, as `out` and `down` return them with `norm`: then no launch and no pass is left of this
            norm.
        norm: [D], any float dtype: the weight of RMSNorm (Zhang and Sennrich 2019); None with `Weighted` rows.
        weight: rows [(N + 2K) * H / 2, 2, D], bfloat16, float16 or float32, from `pack_qkv`; its bias is added before
            QK-norm.
        cache: k and v [P, K, Z, H]. Donate it (`donate_argnums`) and it is updated in place, else it is copied.
        positions: int32 [B], the position of each row in its sequence. A row at a position outside the cache (a
            padding row at -1, say) has its q computed and writes nothing.
        rope: (cos, sin), each float32 [S, R / 2] by position, R the rotated dimensions of a head (R <= H, split
            halves, Su et al. 2021), or None for no rotation.
        sequence: int32 [B], the sequence of each row; None for row i of sequence i.
        page_table: int32 [sequences, pages of a sequence], -1 where there is no page yet (nothing is written
            there), or None for a contiguous cache (page = sequence).
        q_norm, k_norm: [H], the weights of a per-head RMSNorm of q and k before RoPE (Qwen 3, Gemma 3), or None.
        eps: added to the mean square, in both norms.
        norm_offset: added to the norms' weights (1.0 for Gemma); `Weighted` rows have it in them.
        prefetch: the weight that is streamed next: this kernel's programs, when their own loads are done, ask for its
            first `prefetch_bytes` to be in L2, so that memory has work between the two. None asks for nothing.
        implementation: 'triton', 'xla', 'interpret', or None to choose by device.
        tiles: how to cut the kernel; None takes the tuned ones or the heuristic.

    Returns:
        (q [B, N, H] of the weight's dtype, rotated; the cache with the rows' keys and values written).

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it.

    Two rows with one (sequence, position) are undefined. Gradients go through the reference. Works under jit, vmap
    and shard_map (pass `check_vma=False`); under vmap an unbatched cache comes back once per batch entry.
    """
    rows = weighted.check(x, norm)
    checks.float_dtype("x", rows)
    batch, width = rows.shape
    checks.shape("weight.rows", weight.rows, ("(N + 2K) * H / 2", 2, width))
    dtype = weighted.weight_dtype(weight.rows, x)
    checks.shape("cache.k", cache.k, ("P", "K", "Z", "H"))
    pages, kv_heads, _, head_dim = cache.k.shape
    checks.shape("cache.v", cache.v, cache.k.shape)
    checks.same_dtype("cache.v", cache.v, "cache.k", cache.k)
    outputs = weight.rows.shape[0]
    if head_dim % 2 or 2 * outputs % head_dim or 2 * outputs // head_dim <= 2 * kv_heads:
        raise ValueError(
            f"weight.rows: expected (N + 2K) * H / 2 rows for K={kv_heads} and an even H={head_dim}, got {outputs}"
        )
    num_heads = 2 * outputs // head_dim - 2 * kv_heads
    if num_heads % kv_heads:
        raise ValueError(f"weight.rows: {num_heads} query heads are no multiple of {kv_heads} kv heads")
    if weight.bias is not None:
        checks.shape("weight.bias", weight.bias, (outputs, 2))
    sequences = pages
    if page_table is not None:
        checks.indices("page_table", page_table, ("sequences", "pages of a sequence"), -1, pages)
        sequences = page_table.shape[0]
    checks.indices("positions", positions, (batch,), -1, cache.capacity(page_table))
    checks.owners(sequence, batch, sequences)
    if rope is not None:
        checks.shape("rope[0] (cos)", rope[0], ("S", "R / 2"))
        checks.shape("rope[1] (sin)", rope[1], rope[0].shape)
        if 2 * rope[0].shape[1] > head_dim:
            raise ValueError(f"rope: expected at most H / 2 = {head_dim // 2} columns, got {rope[0].shape[1]}")
    if (q_norm is None) != (k_norm is None):
        raise ValueError("q_norm, k_norm: expected both or neither")
    for name, array in (("q_norm", q_norm), ("k_norm", k_norm)):
        if array is not None:
            checks.shape(name, array, (head_dim,))
    chosen = impl.resolve(implementation)
    shape = StreamShape(rows=batch, outputs=outputs, inputs=width, groups=2, dtype=dtype, norm=norm is not None)
    options = Options(
        num_heads=num_heads,
        eps=eps,
        norm_offset=norm_offset,
        shape=shape,
        tiles=qkv_tiles.resolve(tiles, shape, None if q_norm is None else head_dim),
        interpret=chosen == "interpret",
        prefetch_bytes=prefetch_bytes,
    )
    operands = dict(
        x=x, norm=norm, weight=weight, cache=cache, positions=positions, sequence=sequence, page_table=page_table,
        rope=rope, q_norm=q_norm, k_norm=k_norm, prefetch=prefetch,
    )  # fmt: skip
    kernel = reference.qkv if chosen == "xla" else triton.qkv
    return impl.call(kernel, reference.qkv, options, operands)
