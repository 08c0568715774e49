"""attention: decode attention over the KV cache, split over keys and combined in one launch."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pallas_kernels.attention import reference, triton
from pallas_kernels.attention.tiles import ATTENTION, AttentionShape, AttentionTiles
from pallas_kernels.common import checks, choose_tiles
from pallas_kernels.common import implementation as impl
from pallas_kernels.common.calls import MAX_ROWS, joined, rows_in
from pallas_kernels.common.eight_bits import check_device
from pallas_kernels.common.fixed_point import Rows, check_bits
from pallas_kernels.common.kv_cache import KVCache, check_lengths, check_owners
from pallas_kernels.common.prefetch import PREFETCH_BYTES, check_prefetch
from pallas_kernels.common.weights import Weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is static in a call."""

    scale: float
    soft_cap: float | None
    window: int | None
    fixed_point: int | None
    shape: AttentionShape
    tiles: AttentionTiles
    interpret: bool
    prefetch_bytes: int


def attention_counters(rows: int, kv_heads: int, tokens: int = 1) -> jax.Array:
    """The counters that `attention` takes and returns: int32 zeros [B * T, K], for T tokens of each of B rows.

    Raises:
        ValueError, TypeError: a number is not a whole one above 0.
    """
    rows, kv_heads = checks.whole("rows", rows, 1), checks.whole("kv_heads", kv_heads, 1)
    return jnp.zeros((rows * checks.whole("tokens", tokens, 1), kv_heads), jnp.int32)


def shape_of(q: jax.Array, cache: KVCache, *, page_table: jax.Array | None = None, **_) -> AttentionShape:
    """The problem of one launch of a call with these arguments."""
    rows, *tokens, heads, head_dim = q.shape
    tokens = tokens[0] if tokens else 1
    return AttentionShape(
        rows=min(rows, _rows_of_launch(tokens)),
        heads=heads,
        kv_heads=cache.k.shape[1],
        head_dim=head_dim,
        context=cache.capacity(page_table),
        page_size=cache.page_size,
        dtype=str(q.dtype),
        tokens=tokens,
        **{
            f"{name}_dtype": str(stored.dtype)
            for name, stored in (("k", cache.k), ("v", cache.v))
            if stored.dtype != q.dtype
        },
    )


def _rows_of_launch(tokens: int) -> int:
    """How many rows of so many tokens one launch takes."""
    return max(1, MAX_ROWS // tokens)


def attention(
    q: jax.Array,
    cache: KVCache,
    *,
    lengths: jax.Array,
    sequence: jax.Array | None = None,
    page_table: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | None = None,
    counters: jax.Array | None = None,
    fixed_point: int | None = None,
    prefetch: Weight | None = None,
    prefetch_bytes: int = PREFETCH_BYTES,
    implementation: str | None = None,
    tiles: AttentionTiles | None = None,
) -> Rows | tuple[Rows, jax.Array]:
    """Attention of a few query rows over their sequences' cached keys and values.

    A query row is one (sequence, position), or T tokens of a sequence, each at a position of its own, for which the
    keys are read once (for every block of `tiles.block_t` tokens). Several rows may belong to one sequence; they read
    its keys each for themselves. Sizes: B rows, T tokens, N query heads, K kv heads (N a multiple of K), H head
    dimension, P pages of Z positions.

    Args:
        q: [B, N, H] or [B, T, N, H], bfloat16, float16 or float32, rotated.
        cache: k and v [P, K, Z, H], each of q's dtype or of 8 bits with scales; what no token of a row attends to may
            hold anything, NaN too. What one of them does must be finite: where it is not, the row's other tokens may be
            NaN as well. What is in 8 bits is multiplied in q's dtype, which holds it exactly, and sums are scaled.
        lengths: int32 [B] or [B, T], the keys each token attends to (its position + 1), in any order, read at run time;
            0 gives zeros. Lengths beyond the cache, or of which a position that counts has no page, are an error where
            they are known; under jit that token is NaN.
        sequence: int32 [B], the sequence of each row; None for row i of sequence i. One that is not there is an error
            where it is known, NaN under jit.
        page_table: int32 [sequences, pages of a sequence], -1 where there is no page yet, or None for a contiguous
            cache (page = sequence).
        scale: of the scores, above 0; None for 1 / sqrt(H).
        soft_cap: scores become soft_cap * tanh(scores / soft_cap) before the softmax (Gemma 2), or None.
        window: only the last `window` keys count (sliding window, 1 or more), or None.
        counters: int32 zeros [B * T, K] from `attention_counters`, with which the combining of the splits needs no
            memory cleared: they come back zero, to be passed to the next call (donate them). None makes them anew.
        fixed_point: 16 or 8 for rows [B, N * H] in fixed point of so many bits, as `fixed_point_bits` has it of `out`;
            they come as floats all the same of several tokens, or where H is no power of two from 16 on. There is no
            gradient of it: differentiating raises. None for floats.
        prefetch: the weight that the next kernel streams: this kernel's programs, when their own loads are done, ask
            for its first `prefetch_bytes` to be in L2, so that memory has work between the two. None asks for nothing.
        implementation: 'triton', 'xla', 'interpret', or None to choose by device (`resolve_implementation`).
        tiles: how to cut the kernel; None takes the tuned ones or the heuristic's.

    Returns:
        q's shape and dtype, or `FixedPointRows`; with `counters` given, (that, counters). Softmax and sums are float32;
        the split over keys is that of Flash-Decoding (Dao et al. 2023). The order of the sums is fixed: equal calls
        give equal bits.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or value is wrong; the message names it. Of arrays, the values
            of `lengths`, `sequence`, `page_table` and `counters` are looked at, in calls outside jit, which wait for
            them.

    Any number of rows; a launch takes several at a time. Gradients go through the reference. Works under jit, vmap and
    shard_map (pass `check_vma=False`).
    """
    checks.array("q", q)
    if q.ndim == 4:
        checks.shape("q", q, ("B", "T", "N", "H"))
    else:
        checks.shape("q", q, ("B", "N", "H"), " or [B, T, N, H]")
    checks.float_dtype("q", q)
    *by_token, heads, head_dim = q.shape
    batch, tokens = by_token[0], math.prod(by_token[1:])
    checks.instance("cache", cache, KVCache)
    cache.check()
    kv_heads = cache.k.shape[1]
    checks.shape("cache.k", cache.k, ("P", "K", "Z", head_dim))
    cache.check_dtype("q", q)
    if heads % kv_heads:
        raise ValueError(f"q: expected a multiple of the cache's {kv_heads} kv heads, got {heads} heads")
    factor = head_dim**-0.5 if scale is None else checks.positive("scale", scale)
    soft_cap = None if soft_cap is None else checks.positive("soft_cap", soft_cap)
    window = None if window is None else checks.whole("window", window, 1)
    _check_lengths(cache, lengths, sequence, page_table, tuple(by_token), window)
    if counters is not None:
        checks.indices("counters", counters, (batch * tokens, kv_heads), 0, 1)
    fixed_point = check_bits("fixed_point", fixed_point)
    prefetch_bytes = check_prefetch(prefetch, prefetch_bytes)
    chosen = impl.resolve(implementation)
    check_device(chosen, cache.k, cache.v)
    kernel = reference.attention if chosen == "xla" else triton.attention

    def launch(q, lengths, sequence, counters):
        shape = shape_of(q, cache, page_table=page_table)
        options = Options(
            scale=factor,
            soft_cap=soft_cap,
            window=window,
            fixed_point=fixed_point if shape.in_runs else None,
            shape=shape,
            tiles=choose_tiles.resolve("attention", tiles, shape, ATTENTION),
            interpret=chosen == "interpret",
            prefetch_bytes=prefetch_bytes,
        )
        operands = dict(
            q=q, cache=cache, lengths=lengths, sequence=sequence, page_table=page_table, counters=counters,
            prefetch=prefetch,
        )  # fmt: skip
        return impl.call(kernel, reference.attention, options, operands)

    # XLA's implementation takes any number of rows at once.
    most = batch if chosen == "xla" else _rows_of_launch(tokens)
    if batch <= most:
        result, counters_out = launch(q, lengths, sequence, counters)
    else:
        if sequence is None:
            sequence = jnp.arange(batch, dtype=jnp.int32)
        parts = []
        for start in range(0, batch, most):
            rows, of_tokens = (slice(start * size, min(start + most, batch) * size) for size in (1, tokens))
            part = rows_in(dict(q=q, lengths=lengths, sequence=sequence), rows)
            parts.append(launch(**part, counters=rows_in(counters, of_tokens)))
        result, counters_out = joined(parts)
    return result if counters is None else (result, counters_out)


def _check_lengths(cache, lengths, sequence, page_table, by_token: tuple[int, ...], window) -> None:
    """As `check_lengths`, of rows, [B], or of their tokens, [B, T]."""
    rows = by_token[0]
    if len(by_token) == 1:
        return check_lengths(cache, lengths, sequence, page_table, rows, window)
    check_owners(cache, sequence, page_table, rows)
    checks.indices("lengths", lengths, by_token, 0, cache.capacity(page_table) + 1)
    count = checks.known(lengths)
    for of_one_token in () if count is None else count.T:
        check_lengths(cache, of_one_token, sequence, page_table, rows, window)
