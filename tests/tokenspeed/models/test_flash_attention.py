"""The contract of flash attention with logsumexps, by XLA; and that JAX still has what cuDNN's takes."""

import functools
import inspect
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KVCache
from tokenspeed.models.flash_attention import attend_with_logsumexp, cudnn_attention
from tokenspeed.models.prefill_attention import attend_chunk

BATCH, HEADS, KV_HEADS, TOKENS, SLOTS, HEAD_DIM = 3, 4, 2, 5, 11, 8


def drawn():
    draw = np.random.default_rng(0)
    shapes = (HEADS, TOKENS), (KV_HEADS, SLOTS), (KV_HEADS, SLOTS)
    return tuple(jnp.asarray(draw.standard_normal((BATCH, *shape, HEAD_DIM)), jnp.float32) for shape in shapes)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [None, (11, 0, 3)])
def test_what_it_computes(lengths):
    q, k, v = drawn()
    given = None if lengths is None else jnp.array(lengths, jnp.int32)
    out, logsumexp = attend_with_logsumexp(q, k, v, lengths=given, implementation="xla")
    assert out.shape == q.shape and logsumexp.shape == q.shape[:3] and logsumexp.dtype == jnp.float32
    for b in range(BATCH):
        for n in range(HEADS):
            for t in range(TOKENS):
                seen = t + 1 if lengths is None else lengths[b]
                if not seen:
                    assert logsumexp[b, n, t] == -np.inf and not out[b, n, t].any()
                    continue
                keys, values = (np.float64(x[b, n // (HEADS // KV_HEADS), :seen]) for x in (k, v))
                scores = np.exp(keys @ np.float64(q[b, n, t]) / HEAD_DIM**0.5)
                # Float32 roundings of values near 1.
                np.testing.assert_allclose(logsumexp[b, n, t], np.log(scores.sum()), rtol=0, atol=2e-6)
                np.testing.assert_allclose(out[b, n, t], scores @ values / scores.sum(), rtol=0, atol=2e-6)


def test_jax_has_what_cudnn_takes():
    library = cudnn_attention()
    parameters = inspect.signature(library.dot_product_attention).parameters
    assert list(parameters)[:3] == ["query", "key", "value"]
    assert {"q_seqlen", "kv_seqlen", "scale", "mask_type", "qkv_layout", "return_residual"} <= set(parameters)
    assert {"CAUSAL", "PADDING"} <= set(library.MaskType.__members__)


@pytest.mark.parametrize("window, masks", [(None, ["CAUSAL", "PADDING"]), (100, ["CAUSAL"])])
def test_what_a_chunk_asks_of_cudnn(window, masks, monkeypatch):
    """Lowered for a GPU and not run: two calls, which give logsumexps; with a window one, which needs none."""
    monkeypatch.setattr(cudnn_attention(), "check_cudnn_version", lambda: 91900)  # there is none here
    q, new, old = (jax.ShapeDtypeStruct((2, *shape, 64), jnp.bfloat16) for shape in ((50, 4), (50, 2), (2, 300)))
    start = jax.ShapeDtypeStruct((2,), jnp.int32)
    chunk = jax.jit(functools.partial(attend_chunk, window=window, capacity=300))
    traced = chunk.trace(q, new, new, KVCache(k=old, v=old), start)
    text = traced.lower(lowering_platforms=("cuda",)).as_text().replace(r"\22", '"')
    calls = [line for line in text.splitlines() if "@__cudnn$fmhaSoftmax(" in line]
    assert [re.findall(r'"mask_type": "(\w+)"', line) for line in calls] == [[mask] for mask in masks]
    assert all(f'"sliding_window_length": {window or 0},' in line for line in calls)
    assert ["tensor<2x4x50xf32>" in line for line in calls] == [window is None] * len(masks)


def test_a_jax_that_has_it_no_more_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax._src.cudnn.fused_attention_stablehlo", None)
    monkeypatch.delattr(sys.modules["jax._src.cudnn"], "fused_attention_stablehlo", raising=False)
    with pytest.raises(ImportError, match=rf"^prefill_backend: 'cudnn' needs .* jax {jax.__version__} .*take .*'xla'$"):
        cudnn_attention()
