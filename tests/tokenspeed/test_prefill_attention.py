"""The library's attention stands in for the blocks: here by its own XLA implementation, on a GPU by cuDNN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokenspeed.prefill_attention import flash_attention, library, prefill_attention


@pytest.mark.parametrize("window", [None, 1, 7, 100])
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2), (3, 1)])
def test_flash_attention_is_what_the_blocks_compute(window, heads, kv_heads):
    keys = jax.random.split(jax.random.key(0), 3)
    batch, length, head_dim = 2, 37, 16
    q, k, v = (
        jax.random.normal(key, (batch, length, n, head_dim)) for key, n in zip(keys, (heads, kv_heads, kv_heads))
    )
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    blocks = prefill_attention(q, jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2), positions, window=window)
    with jax.default_matmul_precision("highest"):
        found = flash_attention(q, k, v, window=window, library="xla")
    np.testing.assert_allclose(found, blocks, rtol=0, atol=2e-6)  # a few float32 roundings of values near 1


@pytest.mark.parametrize(
    "implementation, dtype, head_dim, expected",
    [
        ("triton", "bfloat16", 128, "cudnn"),
        ("triton", "float16", 80, "cudnn"),
        ("triton", "float32", 128, None),
        ("triton", "bfloat16", 256, None),
        ("triton", "bfloat16", 12, None),
        ("xla", "bfloat16", 128, None),
        ("interpret", "bfloat16", 128, None),
    ],
)
def test_where_the_library_runs(implementation, dtype, head_dim, expected):
    assert library(implementation, dtype, head_dim) == expected
