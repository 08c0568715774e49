"""rope_and_cache: what follows a QKV product, QK-norm + RoPE + KV-cache write, one launch."""

import dataclasses
from typing import Any

import jax

from pallas_kernels.common import checks, weights
from pallas_kernels.common import implementation as impl
from pallas_kernels.common.arithmetic import check_rope
from pallas_kernels.common.eight_bits import check_device
from pallas_kernels.common.kv_cache import KVCache, check_places
from pallas_kernels.rope_and_cache import reference, triton


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is static in a call."""

    num_heads: int
    rotary_dim: int | None
    eps: float
    norm_offset: float
    dtype: str
    interpret: bool


def rope_and_cache(
    pairs: jax.Array,
    cache: KVCache,
    *,
    positions: jax.Array,
    rope: tuple[jax.Array, jax.Array] | None,
    sequence: jax.Array | None = None,
    page_table: jax.Array | None = None,
    q_norm: jax.Array | None = None,
    k_norm: jax.Array | None = None,
    rotary_dim: int | None = None,
    eps: float = 1e-5,
    norm_offset: float = 0.0,
    out_dtype: Any = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, KVCache]:
    """QK-norm, RoPE and the write into the KV cache, of a QKV product that is there already.

    What `qkv` does with its sums, for rows of any number whose product another kernel computes faster: prefill's.
    Sizes: B rows, N query heads, K kv heads, H head dimension, P pages of Z positions.

    Args:
        pairs: [B, (N + 2K) * H / 2, 2], any float dtype: x times a weight from `pack_qkv`, its bias added.
        cache: k and v [P, K, Z, H], of any dtype of a `KVCache`: what is written is rounded to it. Donate it
            (`donate_argnums`) and it is updated in place, else it is copied.
        positions, rope, sequence, page_table, q_norm, k_norm: as in `qkv`.
        rotary_dim: that the weight was packed for; None for all of H.
        eps, norm_offset: of QK-norm, as in `qkv`.
        out_dtype: of q: one of `DTYPES`; None for the cache's, whose keys then are not of 8 bits.
        implementation: 'triton', 'xla', 'interpret', or None to choose by device (`resolve_implementation`).

    Returns:
        (q [B, N, H], rotated; k and v [B, K, H], as they are in the cache; the cache with them written).

    Raises:
        ValueError, TypeError: an argument's shape, dtype or known value is wrong, as in `qkv`; the message names it.

    Gradients go through the reference. Works under jit, vmap and shard_map (pass `check_vma=False`).
    """
    checks.shape("pairs", pairs, ("B", "(N + 2K) * H / 2", 2))
    checks.floating("pairs", pairs)
    checks.instance("cache", cache, KVCache)
    cache.check()
    batch, head_dim = pairs.shape[0], cache.k.shape[3]
    num_heads = check_heads("pairs", pairs.shape[1], cache)
    check_places(cache, positions, sequence, page_table, batch)
    check_rotation(rope, positions, batch, head_dim, weights.checked_rotary_dim(head_dim, rotary_dim))
    check_qk_norm(q_norm, k_norm, head_dim)
    chosen = impl.resolve(implementation)
    check_device(chosen, cache.k, cache.v)
    options = Options(
        num_heads=num_heads,
        rotary_dim=rotary_dim,
        eps=checks.positive("eps", eps),
        norm_offset=checks.number("norm_offset", norm_offset),
        dtype=checks.one_of_dtypes("out_dtype", cache.k.dtype if out_dtype is None else out_dtype, checks.DTYPES),
        interpret=chosen == "interpret",
    )
    operands = dict(
        pairs=pairs, cache=cache, positions=positions, sequence=sequence, page_table=page_table, rope=rope,
        q_norm=q_norm, k_norm=k_norm,
    )  # fmt: skip
    kernel = reference.rope_and_cache if chosen == "xla" else triton.rope_and_cache
    return impl.call(kernel, reference.rope_and_cache, options, operands)


def check_rotation(rope: Any, positions: jax.Array, rows: int, head_dim: int, rotary_dim: int) -> None:
    """Raises unless `rope`, if there is one, turns as many dimensions as the weight was packed for."""
    if rope is None:
        return
    check_rope(rope, positions, rows, head_dim)
    if 2 * rope[0].shape[1] != rotary_dim:
        raise ValueError(
            f"rope: expected {rotary_dim // 2} columns, half the rotary_dim of the packed weight, got "
            f"{rope[0].shape[1]}"
        )


def check_qk_norm(q_norm: jax.Array | None, k_norm: jax.Array | None, head_dim: int) -> None:
    """Raises unless there are both weights of QK-norm or neither."""
    if (q_norm is None) != (k_norm is None):
        raise ValueError("q_norm, k_norm: expected both or neither")
    for name, array in (("q_norm", q_norm), ("k_norm", k_norm)):
        if array is not None:
            checks.norm_weight(name, array, head_dim)


def check_heads(name: str, outputs: int, cache: KVCache) -> int:
    """N; raises unless so many packed outputs, those of the argument `name`, and the cache go together."""
    _, kv_heads, _, head_dim = cache.k.shape
    if head_dim % 2 or 2 * outputs % head_dim or 2 * outputs // head_dim <= 2 * kv_heads:
        raise ValueError(
            f"{name}: expected (N + 2K) * H / 2 pairs for K={kv_heads} and an even H={head_dim}, got {outputs}"
        )
    num_heads = 2 * outputs // head_dim - 2 * kv_heads
    if num_heads % kv_heads:
        raise ValueError(f"{name}: {num_heads} query heads are no multiple of {kv_heads} kv heads")
    return num_heads
