"""A decode step made of the kernels against a LLaMA in the usual layouts that sees all positions at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.common.launch import guarded

D, N, K, H, F, V, L = 36, 6, 2, 12, 52, 70, 2
SEQUENCES, LENGTH, PAGE = 2, 7, 4
EPS = 1e-5


def draw(seed):
    """Weights in the usual JAX layouts, inputs first."""
    random = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return jnp.asarray(scale * random.standard_normal(shape), jnp.float32)

    shapes = dict(wq=(D, N, H), wk=(D, K, H), wv=(D, K, H), gate=(D, F), up=(D, F), down=(F, D))
    layers = [
        {name: normal(*shape, scale=shape[0] ** -0.5) for name, shape in shapes.items()}
        | dict(wo=normal(N, H, D, scale=(N * H) ** -0.5), bq=normal(N, H), bk=normal(K, H), bv=normal(K, H))
        | dict(attention_norm=normal(D), mlp_norm=normal(D))
        for _ in range(L)
    ]
    return layers, dict(embedding=normal(V, D), norm=normal(D), unembedding=normal(D, V, scale=D**-0.5))


def rope_table(rotary_dim):
    angles = np.arange(LENGTH)[:, None] * 500.0 ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def llama(layers, rest, tokens, rope):
    """Logits [B, T, V] of tokens [B, T]: the textbook, all in float64."""
    layers, rest, (cos, sin) = jax.tree.map(lambda x: np.asarray(x, np.float64), (layers, rest, rope))

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight

    def rotate(x):  # [B, T, heads, H]; the first R dimensions, halves against each other
        half = cos.shape[-1]
        a, b, c = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        co, si = cos[:, None], sin[:, None]
        return np.concatenate([a * co - b * si, b * co + a * si, c], -1)

    x = rest["embedding"][np.asarray(tokens)]
    mask = np.where(np.tril(np.ones((LENGTH, LENGTH), bool)), 0.0, -np.inf)
    for p in layers:
        h = norm(x, p["attention_norm"])
        q, k, v = (np.einsum("btd,dnh->btnh", h, p["w" + c]) + p["b" + c] for c in "qkv")
        q, k = rotate(q), rotate(k)
        k, v = np.repeat(k, N // K, axis=2), np.repeat(v, N // K, axis=2)
        scores = np.einsum("btnh,bsnh->bnts", q, k) * H**-0.5 + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads = np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)
        x = x + np.einsum("btnh,nhd->btd", heads, p["wo"])
        h = norm(x, p["mlp_norm"])
        gate, up = h @ p["gate"], h @ p["up"]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ p["down"]
    return norm(x, rest["norm"]) @ rest["unembedding"]


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["interpret", "xla"])
@pytest.mark.parametrize("rotary_dim", [H, 8])
def test_decode_agrees_with_llama(implementation, rotary_dim):
    layers, rest = draw(0)
    packed = [
        dict(
            qkv=pk.pack_qkv(*(p[n] for n in ("wq", "wk", "wv", "bq", "bk", "bv")), rotary_dim=rotary_dim),
            out=pk.pack_linear(p["wo"]),
            gate_up=pk.pack_gate_up(p["gate"], p["up"]),
            down=pk.pack_linear(p["down"]),
            norms=(p["attention_norm"], p["mlp_norm"]),
        )
        for p in layers
    ]
    unembedding, rope = pk.pack_linear(rest["unembedding"]), rope_table(rotary_dim)
    pages = -(-LENGTH // PAGE)
    table = jnp.asarray(np.random.default_rng(1).permutation(SEQUENCES * pages).reshape(SEQUENCES, pages), jnp.int32)
    nan = jnp.full((SEQUENCES * pages, K, PAGE, H), jnp.nan)
    caches = [pk.KVCache(k=nan, v=nan) for _ in range(L)]
    tokens = np.random.default_rng(2).integers(0, V, (SEQUENCES, LENGTH))
    choice = dict(implementation=implementation)

    def step(caches, token, position):
        x, new = rest["embedding"][token], []
        for p, cache in zip(packed, caches):
            q, cache = pk.qkv(
                x, p["norms"][0], p["qkv"], cache, positions=position, rope=rope, page_table=table, eps=EPS, **choice
            )
            heads = pk.attention(q, cache, lengths=position + 1, page_table=table, **choice)
            x = pk.out(heads, p["out"], residual=x, **choice)
            x = pk.down(pk.gate_up(x, p["norms"][1], p["gate_up"], eps=EPS, **choice), p["down"], residual=x, **choice)
            new.append(cache)
        logits = pk.head_logits(x, rest["norm"], unembedding, eps=EPS, **choice)
        return new, logits, pk.head(x, rest["norm"], unembedding, eps=EPS, **choice)[0]

    expected = llama(layers, rest, tokens, rope)
    with guarded():
        for t in range(LENGTH):
            caches, logits, best = step(caches, tokens[:, t], jnp.full((SEQUENCES,), t, jnp.int32))
            np.testing.assert_allclose(logits, expected[:, t], rtol=1e-4, atol=1e-4)  # float32 through two layers
            np.testing.assert_array_equal(best, expected[:, t].argmax(-1))
