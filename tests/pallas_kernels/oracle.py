"""A plain LLaMA in numpy, float64, in the usual layouts: no packing, no blocks, one page table lookup per position.

Kernels and references share helpers with each other; nothing here shares any with them.
"""

import numpy as np

import pallas_kernels as pk


def _float64(array):
    return None if array is None else np.asarray(array).astype(np.float64)


def _stands_for(stored, scale):
    """Keys or values [P, K, Z, H], float64."""
    return _float64(stored) * (1 if scale is None else _float64(scale)[:, None, None])


def rms_norm(x, weight, eps, offset):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * (weight + offset)


def finish_norm(x, weight, eps, offset):
    """RMSNorm of rows, or what is left of it where it was deferred."""
    if isinstance(x, pk.DeferredNorm):
        squares = _float64(x.squares).sum(axis=1, keepdims=True)
        return _float64(x.x) / np.sqrt(squares / x.x.shape[1] + eps)
    return rms_norm(_float64(x), _float64(weight), eps, offset)


def rotate(x, angles_cos, angles_sin):
    """x [B, heads, H]; cos, sin [B, R / 2]; the first R dimensions turn, dimension i with i + R / 2."""
    half = angles_cos.shape[-1]
    out = x.copy()
    cos, sin = angles_cos[:, None], angles_sin[:, None]
    out[..., :half] = x[..., :half] * cos - x[..., half : 2 * half] * sin
    out[..., half : 2 * half] = x[..., half : 2 * half] * cos + x[..., :half] * sin
    return out


def projection(*, x, weight, residual=None, out_dtype=None, norm=None, norm_offset=0.0):
    del out_dtype
    kernel, bias = (_float64(a) for a in pk.unpack_linear(weight))
    y = np.einsum("bi,io->bo", _float64(x).reshape(len(x), -1), kernel)
    y = y + (0 if bias is None else bias) + (0 if residual is None else _float64(residual))
    if norm is not None:
        return y * (_float64(norm) + norm_offset), (y * y).sum(axis=1), y
    return y


def gate_up(*, x, norm, weight, activation="silu", eps=1e-5, norm_offset=0.0):
    gate, up, gate_bias, up_bias = (_float64(a) for a in pk.unpack_gate_up(weight))
    hidden = finish_norm(x, norm, eps, norm_offset)
    g, u = np.einsum("bd,df->bf", hidden, gate), np.einsum("bd,df->bf", hidden, up)
    if gate_bias is not None:
        g, u = g + gate_bias, u + up_bias
    if activation == "silu":
        return g / (1 + np.exp(-g)) * u
    return 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))) * u


def head_logits(*, x, norm, weight, soft_cap=None, eps=1e-5, norm_offset=0.0):
    kernel, bias = (_float64(a) for a in pk.unpack_linear(weight))
    logits = np.einsum("bd,dv->bv", finish_norm(x, norm, eps, norm_offset), kernel)
    logits = logits + (0 if bias is None else bias)
    return logits if soft_cap is None else soft_cap * np.tanh(logits / soft_cap)


def _slot(cache_k, sequence, position, page_table):
    """(page, slot) of one position, or None where it is outside."""
    size = cache_k.shape[2]
    if page_table is None:
        return (sequence, position) if 0 <= position < size else None
    inside = 0 <= position < size * page_table.shape[1]
    return (page_table[sequence, position // size], position % size) if inside else None


def qkv(
    *, x, norm, weight, cache, positions, sequence=None, page_table=None, rope=None, q_norm=None, k_norm=None,
    eps=1e-5, norm_offset=0.0,
):  # fmt: skip
    """(q, cache k, cache v), the caches float64, without scales and not rounded."""
    positions, sequence, page_table = (None if a is None else np.asarray(a) for a in (positions, sequence, page_table))
    sequence = np.arange(len(positions)) if sequence is None else sequence
    _, kv_heads, _, head_dim = cache.k.shape
    heads = 2 * weight.values.shape[0] // head_dim - 2 * kv_heads
    *kernels, bq, bk, bv = (_float64(a) for a in pk.unpack_qkv(weight, heads, kv_heads))
    hidden = finish_norm(x, norm, eps, norm_offset)
    q, k, v = (np.einsum("bd,dnh->bnh", hidden, w) for w in kernels)
    if bq is not None:
        q, k, v = q + bq, k + bk, v + bv
    if q_norm is not None:
        q = rms_norm(q, _float64(q_norm), eps, norm_offset)
        k = rms_norm(k, _float64(k_norm), eps, norm_offset)
    if rope is not None:
        cos, sin = (_float64(table)[np.clip(positions, 0, len(table) - 1)] for table in rope)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    new_k, new_v = _stands_for(cache.k, cache.k_scale), _stands_for(cache.v, cache.v_scale)
    for row, position in enumerate(positions):
        at = _slot(cache.k, sequence[row], position, page_table)
        if at is not None:
            new_k[at[0], :, at[1]], new_v[at[0], :, at[1]] = k[row], v[row]
    return q, new_k, new_v


def attention(
    *, q, cache, lengths, sequence=None, page_table=None, scale=None, soft_cap=None, window=None, counters=None
):
    del counters
    lengths, sequence, page_table = (None if a is None else np.asarray(a) for a in (lengths, sequence, page_table))
    sequence = np.arange(len(lengths)) if sequence is None else sequence
    q, k, v = _float64(q), _stands_for(cache.k, cache.k_scale), _stands_for(cache.v, cache.v_scale)
    if q.ndim == 4:  # each token is a row of its sequence
        rows = q.reshape(-1, *q.shape[2:])
        out = attention(
            q=rows, cache=cache, lengths=lengths.reshape(-1), sequence=np.repeat(sequence, q.shape[1]),
            page_table=page_table, scale=scale, soft_cap=soft_cap, window=window,
        )  # fmt: skip
        return out.reshape(q.shape)
    rows, heads, head_dim = q.shape
    group = heads // k.shape[1]
    out = np.zeros_like(q)
    for row in range(rows):
        oldest = max(lengths[row] - window, 0) if window else 0
        places = [_slot(k, sequence[row], position, page_table) for position in range(oldest, lengths[row])]
        if not places:
            continue
        page, slot = np.array(places).T
        keys, values = k[page, :, slot], v[page, :, slot]  # [S, K, H]
        for head in range(heads):
            scores = keys[:, head // group] @ q[row, head] * (head_dim**-0.5 if scale is None else scale)
            if soft_cap is not None:
                scores = soft_cap * np.tanh(scores / soft_cap)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ values[:, head // group] / weights.sum()
    return out


BY_NAME = dict(qkv=qkv, attention=attention, out=projection, down=projection, gate_up=gate_up, head_logits=head_logits)


def of(call) -> tuple[np.ndarray, ...]:
    """The oracle's results for a call of `inputs`, as a tuple."""
    result = BY_NAME[call.function.__name__](**call.arrays, **call.options)
    return result if isinstance(result, tuple) else (result,)
