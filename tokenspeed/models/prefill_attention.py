"""Attention of many queries, whose memory does not grow with the square of the context.

cuDNN's flash attention where it can run; blocks of XLA's products elsewhere.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import KVCache
from tokenspeed.models.flash_attention import CUDNN_HEAD_DIM, attend_behind, flash_attention

BLOCK_T, BLOCK_S = 256, 512
LOWEST = -1e30

PREFILL_BACKENDS = ("cudnn", "xla")


def resolve_prefill_backend(backend: str | None, *, implementation: str, dtype, head_dim: int) -> str:
    """Whose attention prefill runs.

    Args:
        backend: one of PREFILL_BACKENDS, or None for cuDNN's where it can run, else XLA's.
        implementation: of the kernels; 'triton' says that this is an NVIDIA GPU. dtype, head_dim: of the model.

    Raises:
        ValueError: an unknown name, or 'cudnn' where it cannot run: a named one never falls back.
    """
    if backend not in (None, *PREFILL_BACKENDS):
        raise ValueError(f"prefill_backend: expected None or one of {', '.join(PREFILL_BACKENDS)}, got {backend!r}")
    fits = jnp.dtype(dtype).itemsize == 2 and head_dim <= CUDNN_HEAD_DIM and head_dim % 8 == 0
    runs = implementation == "triton" and fits
    if backend == "cudnn" and not runs:
        raise ValueError(
            "prefill_backend: 'cudnn' needs an NVIDIA GPU, 16-bit weights and a head dimension that is a multiple of 8 "
            f"up to {CUDNN_HEAD_DIM}"
        )
    return backend or ("cudnn" if runs else "xla")


def attend_chunk(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: KVCache,
    start: jax.Array | None,
    *,
    window: int | None,
    capacity: int,
    page_table: jax.Array | None = None,
    implementation: str = "cudnn",
) -> jax.Array:
    """Causal attention of a chunk of each sequence, wherever it begins, by the library's flash attention.

    Args:
        q: [B, T, N, H], rotated. k, v: [B, T, K, H], those of the chunk, as they are in the cache.
        cache: with what came before the chunk; what else it holds is not looked at.
        start: int32 [B], the position of the chunk's first token in each sequence, which may be 0; None: 0 in all.
        window: each token sees itself and the `window` - 1 before it, or all before it if None.
        capacity: a static bound of the positions. page_table: of the cache, or None for a contiguous one.
        implementation: of `attend_with_logsumexp`.

    Returns:
        [B, T, N, H] of q's dtype.
    """
    k, v = floats(cache, k, v, q.dtype, heads_axis=2)
    if start is None:
        return flash_attention(q, k, v, window=window, implementation=implementation)
    window = window_that_counts(window, capacity)
    before = before_chunk(cache, start, q.dtype, window=window, capacity=capacity, page_table=page_table)
    return attend_behind(q, k, v, before, start, window=window, implementation=implementation)


def window_that_counts(window: int | None, capacity: int) -> int | None:
    """The window, or None where no position below the capacity is out of it."""
    return None if window is None or window >= capacity else window


def before_chunk(
    cache: KVCache,
    start: jax.Array,
    dtype: Any,
    *,
    window: int | None,
    capacity: int,
    page_table: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The keys and values that a chunk finds before it, gathered from the cache; zeros from the position `start` on.

    Args:
        dtype: of what is returned; the cache's where that is not in 8 bits.

    Returns:
        Without a window [B, K, S, H] each, slot s of position s, S at least the capacity or all that there is. With
        one [B, `window` - 1, K, H], from position max(0, start - (window - 1)) on.
    """
    batch = start.shape[0]
    if window is None:
        k, v = of_sequences(cache, batch, page_table, capacity, dtype)
        seen = (jnp.arange(k.shape[2]) < start[:, None])[:, None, :, None]
    else:
        at = jnp.maximum(start - (window - 1), 0)[:, None] + jnp.arange(window - 1)  # [B, W - 1]
        slot = jnp.minimum(at, capacity - 1)
        page = jnp.arange(batch)[:, None]
        if page_table is not None:
            page = jnp.maximum(jnp.take_along_axis(page_table, slot // cache.page_size, axis=1), 0)
        k, v = (x[page, :, slot % cache.page_size] for x in (cache.k, cache.v))
        k, v = floats(cache, k, v, dtype, heads_axis=2)
        seen = (at < start[:, None])[:, :, None, None]
    k, v = (jnp.where(seen, x, 0) for x in (k, v))  # cuDNN multiplies what it masks by 0, and NaN times 0 is NaN
    return k, v


def of_sequences(
    cache: KVCache, batch: int, page_table: jax.Array | None, capacity: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """The keys and values of each sequence, as `floats`: [B, K, S, H] with S at most the capacity in whole pages."""

    def of(pages):
        if page_table is None:
            return lax.slice_in_dim(pages[:batch], 0, min(capacity, pages.shape[2]), axis=2)
        count = -(-capacity // pages.shape[2])
        found = pages[jnp.maximum(page_table[:, :count], 0)]  # [B, pages, K, Z, H]
        return jnp.moveaxis(found, 2, 1).reshape(batch, pages.shape[1], -1, pages.shape[3])

    return floats(cache, of(cache.k), of(cache.v), dtype, heads_axis=1)


def floats(cache: KVCache, k: jax.Array, v: jax.Array, dtype: Any, *, heads_axis: int) -> tuple[jax.Array, jax.Array]:
    """Keys and values as they are stored, of any shape with kv heads along an axis, as the numbers that they stand for:
    those of 8 bits times their scale, rounded to `dtype`; others as they are."""

    def of(stored, scale):
        if scale is None:
            return stored
        by_head = scale.reshape(-1, *[1] * (stored.ndim - 1 - heads_axis))
        return (stored.astype(jnp.float32) * by_head).astype(dtype)

    return of(k, cache.k_scale), of(v, cache.v_scale)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array, *, window: int | None = None) -> jax.Array:
    """Causal attention with the online softmax over blocks of keys (Milakov and Gimelshein 2018; Dao et al. 2022).

    Args:
        q: [B, T, N, H], rotated.
        k, v: [B, K, S, H] of q's dtype; slot s holds position s. What no query attends to may hold anything.
        positions: int32 [B, T]; a query at position p attends to slots 0 to p, and one at -1 to nothing (zeros).
        window: only the last `window` of them, or None.

    Returns:
        [B, T, N, H] of q's dtype.
    """
    tokens = q.shape[1]
    block_t = min(BLOCK_T, tokens)
    padded = -tokens % block_t
    if padded:
        q = jnp.pad(q, ((0, 0), (0, padded), (0, 0), (0, 0)))
        positions = jnp.pad(positions, ((0, 0), (0, padded)), constant_values=-1)
    blocks = (tokens + padded) // block_t
    if blocks == 1:
        return _over_keys(q, positions, k, v, window)[:, :tokens]

    def cut(x):
        return jnp.moveaxis(x.reshape(x.shape[0], blocks, block_t, *x.shape[2:]), 1, 0)

    out = lax.map(lambda block: _over_keys(block[0], block[1], k, v, window), (cut(q), cut(positions)))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape)[:, :tokens]


def _over_keys(q, positions, k, v, window):
    batch, tokens, heads, head_dim = q.shape
    kv_heads, slots = k.shape[1:3]
    block_s = min(BLOCK_S, slots)
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    grouped = q.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim)

    # Recomputed for gradients: its scores are what must not pile up.
    @jax.checkpoint
    def step(carry, j):
        peak, total, values = carry
        # The last block may be moved back inside; what it then sees again is left out.
        begin = jnp.minimum(j * block_s, slots - block_s)
        slot = begin + jnp.arange(block_s)
        block_k, block_v = (lax.dynamic_slice_in_dim(x, begin, block_s, axis=2) for x in (k, v))
        inside = (slot <= positions[:, :, None]) & (slot >= j * block_s)  # [B, T, S]
        if window is not None:
            inside &= slot > positions[:, :, None] - window
        seen = inside.any(axis=1)[:, None, :, None]
        block_k, block_v = (jnp.where(seen, x, 0) for x in (block_k, block_v))  # NaN times 0 is NaN
        scores = product("btkgh,bksh->bkgts", grouped, block_k) * head_dim**-0.5
        mask = inside[:, None, None]
        new_peak = jnp.maximum(peak, jnp.where(mask, scores, LOWEST).max(axis=-1))
        weights = jnp.where(mask, jnp.exp(scores - new_peak[..., None]), 0.0)
        decay = jnp.exp(peak - new_peak)
        total = total * decay + weights.sum(axis=-1)
        values = values * decay[..., None] + product("bkgts,bksh->bkgth", weights.astype(q.dtype), block_v)
        return (new_peak, total, values), None

    shape = batch, kv_heads, heads // kv_heads, tokens
    carry = jnp.full(shape, LOWEST), jnp.zeros(shape), jnp.zeros((*shape, head_dim))
    (_, total, values), _ = lax.scan(step, carry, jnp.arange(-(-slots // block_s)))
    out = values / jnp.where(total == 0.0, 1.0, total)[..., None]
    return jnp.moveaxis(out, 3, 1).reshape(q.shape).astype(q.dtype)
