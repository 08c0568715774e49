"""The library's flash attention (Dao et al. 2022): cuDNN's, and XLA's products of the same contract without a GPU.

The one file of this package that reaches into JAX: `jax.nn.dot_product_attention` rounds the logsumexps that it returns
to the dtype of the queries, and by such no two parts of an attention can be joined.
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

CUDNN_HEAD_DIM = 128
"""At most, on every GPU since Ampere; a multiple of 8."""
SQUARE_STEP = 64
"""The side of a square with a window is a multiple of this, of whole tiles of queries."""


def flash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, window: int | None, implementation: str = "cudnn"
) -> jax.Array:
    """Causal attention of tokens among themselves.

    Args:
        q: [B, T, N, H]. k, v: [B, T, K, H], float16 or bfloat16.
        window: each token sees itself and the `window` - 1 before it, or all before it if None.
        implementation: of `jax.nn.dot_product_attention`: 'cudnn' or 'xla'.

    Returns:
        [B, T, N, H] of q's dtype.
    """
    how: dict[str, Any] = dict(implementation=implementation)
    if window is not None:
        how["local_window_size"] = (window - 1, 0)
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, **how)


def attend_with_logsumexp(
    q: jax.Array, k: jax.Array, v: jax.Array, *, lengths: jax.Array | None = None, implementation: str = "cudnn"
) -> tuple[jax.Array, jax.Array]:
    """Attention, and the logsumexp of each query's scores, by which it is joined with that on other keys.

    Args:
        q: [B, N, T, H]. k, v: [B, K, S, H], float16 or bfloat16 ('xla': any float dtype). All must be finite, the keys
            and values that no query sees too.
        lengths: int32 [B]; every query sees the first `lengths` keys. None: query t sees keys 0 to t.
        implementation: 'cudnn', or 'xla', which holds the scores of all queries and keys at once: for checking.

    Returns:
        ([B, N, T, H] of q's dtype, float32 [B, N, T]); zeros and -inf where the length is 0.

    Raises:
        ImportError: this jax does not have what 'cudnn' takes.
    """
    attend = dict(cudnn=_by_cudnn, xla=_by_xla)[implementation]
    out, logsumexp = attend(q, k, v, lengths)
    if lengths is not None:  # of no keys they say 0, which is a sum of 1
        logsumexp = jnp.where((lengths > 0)[:, None, None], logsumexp, -jnp.inf)
    return out, logsumexp


def attend_behind(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    before: tuple[jax.Array, jax.Array],
    start: jax.Array,
    *,
    window: int | None,
    implementation: str = "cudnn",
) -> jax.Array:
    """Causal attention of a chunk of each sequence, wherever it begins, on what was gathered from before it.

    Args:
        q: [B, T, N, H]. k, v: [B, T, K, H], those of the chunk.
        before: keys and values as `prefill_attention.before_chunk` gives them.
        start: int32 [B], the position of the chunk's first token in each sequence.
        window: each token sees itself and the `window` - 1 before it, or all before it if None.
        implementation: of `attend_with_logsumexp`.

    Returns:
        [B, T, N, H] of q's dtype.

    Without a window in two parts, the chunk among itself and the chunk on what came before it, which are joined by
    their logsumexps in float32. With one, cuDNN's mask goes from the first query and the first key down, so the chunk
    is put into a square of T + window - 1 positions, where each query stands on the diagonal; that is exact, and
    (T + window) / T times the work of the chunk alone.
    """
    if window is not None:
        return _in_square(q, k, v, before, start, window, implementation)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    out, logsumexp = attend_with_logsumexp(q, k, v, implementation=implementation)
    earlier, its_logsumexp = attend_with_logsumexp(q, *before, lengths=start, implementation=implementation)
    # exp(a) / (exp(a) + exp(b)): 1 where nothing came before, since b is -inf.
    share, its_share = (jax.nn.sigmoid(x)[..., None] for x in (logsumexp - its_logsumexp, its_logsumexp - logsumexp))
    joined = share * out.astype(jnp.float32) + its_share * earlier.astype(jnp.float32)
    return jnp.swapaxes(joined.astype(q.dtype), 1, 2)


def _in_square(q, k, v, before, start, window, implementation):
    batch, tokens = q.shape[:2]
    side = -(-(tokens + window - 1) // SQUARE_STEP) * SQUARE_STEP
    first = jnp.minimum(start, window - 1)[:, None]  # the place of the first query
    of_chunk = jnp.arange(side) - first  # [B, side]
    row, inside = jnp.arange(batch)[:, None], ((of_chunk >= 0) & (of_chunk < tokens))[:, :, None, None]

    def placed(x):
        return jnp.where(inside, x[row, jnp.clip(of_chunk, 0, tokens - 1)], 0)

    def behind(new, old):
        old = jnp.pad(old, ((0, 0), (0, side - old.shape[1]), (0, 0), (0, 0)))
        return jnp.where((of_chunk < 0)[:, :, None, None], old, placed(new))

    k, v = (behind(new, old) for new, old in zip((k, v), before, strict=True))
    out = flash_attention(placed(q), k, v, window=window, implementation=implementation)
    return out[row, first + jnp.arange(tokens)]


def _by_cudnn(q, k, v, lengths):
    library = cudnn_attention()
    batch, _, tokens, head_dim = q.shape
    how: dict[str, Any] = dict(mask_type=library.MaskType.CAUSAL)
    if lengths is not None:
        queries = jnp.full((batch,), tokens, jnp.int32)
        how = dict(mask_type=library.MaskType.PADDING, q_seqlen=queries, kv_seqlen=lengths)
    return library.dot_product_attention(q, k, v, scale=head_dim**-0.5, qkv_layout="BNTH", return_residual=True, **how)


def _by_xla(q, k, v, lengths):
    (batch, heads, tokens, head_dim), (kv_heads, slots) = q.shape, k.shape[1:3]
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    grouped = q.reshape(batch, kv_heads, heads // kv_heads, tokens, head_dim)
    scores = jnp.einsum("bkgth,bksh->bkgts", grouped, k, precision=precision, preferred_element_type=jnp.float32)
    slot = jnp.arange(slots)
    if lengths is None:
        seen = (slot <= jnp.arange(tokens)[:, None])[None, None, None]
    else:
        seen = (slot < lengths[:, None])[:, None, None, None]
    scores = jnp.where(seen, scores * head_dim**-0.5, -jnp.inf)
    logsumexp = jax.nn.logsumexp(scores, axis=-1)
    logsumexp = jnp.where(logsumexp == -jnp.inf, 0.0, logsumexp)  # as cuDNN has it
    weights = jnp.where(seen, jnp.exp(scores - logsumexp[..., None]), 0.0).astype(q.dtype)
    out = jnp.einsum("bkgts,bksh->bkgth", weights, v, precision=precision, preferred_element_type=jnp.float32)
    return out.reshape(q.shape).astype(q.dtype), logsumexp.reshape(batch, heads, tokens)


def cudnn_attention() -> ModuleType:
    """JAX's module of cuDNN's attention.

    Raises:
        ImportError: this jax has none; the message says what to do.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo
    except ImportError:
        raise ImportError(
            f"prefill_backend: 'cudnn' needs jax._src.cudnn.fused_attention_stablehlo, which jax {jax.__version__} "
            "does not have (0.11 and 0.12 do); take prefill_backend='xla'"
        ) from None
    return fused_attention_stablehlo
