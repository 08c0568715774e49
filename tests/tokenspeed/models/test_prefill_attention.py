"""The library's attention stands in for the blocks: here by its own XLA implementation, on a GPU by cuDNN."""

import functools

import jax
import numpy as np
import pytest

from tests.pallas_kernels.marks import slow
from tokenspeed.models.prefill_attention import attend, flash_attention, resolve_prefill_backend


@pytest.mark.parametrize("window", [None, slow(1), 7, slow(100)])
@pytest.mark.parametrize("heads, kv_heads", [slow(4, 4), (6, 2), slow(3, 1)])
def test_flash_attention_is_what_the_blocks_compute(window, heads, kv_heads):
    draw = np.random.default_rng(0)
    batch, length, head_dim = 2, 37, 16
    q, k, v = (
        draw.standard_normal((batch, length, n, head_dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads)
    )
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length))
    blocks = jax.jit(functools.partial(attend, window=window))(q, k.swapaxes(1, 2), v.swapaxes(1, 2), positions)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(functools.partial(flash_attention, window=window, implementation="xla"))(q, k, v)
    np.testing.assert_allclose(found, blocks, rtol=0, atol=2e-6)  # a few float32 roundings of values near 1


@pytest.mark.parametrize(
    "implementation, dtype, head_dim, expected",
    [
        ("triton", "bfloat16", 128, "cudnn"),
        ("triton", "float16", 80, "cudnn"),
        ("triton", "float32", 128, "xla"),
        ("triton", "bfloat16", 256, "xla"),
        ("triton", "bfloat16", 12, "xla"),
        ("xla", "bfloat16", 128, "xla"),
        ("interpret", "bfloat16", 128, "xla"),
    ],
)
def test_whose_attention_runs(implementation, dtype, head_dim, expected):
    how = dict(implementation=implementation, dtype=dtype, head_dim=head_dim)
    assert resolve_prefill_backend(None, **how) == expected
    assert resolve_prefill_backend("xla", **how) == "xla"
    if expected == "cudnn":
        assert resolve_prefill_backend("cudnn", **how) == "cudnn"
    else:
        with pytest.raises(ValueError, match=r"^prefill_backend: 'cudnn' needs an NVIDIA GPU"):
            resolve_prefill_backend("cudnn", **how)
    with pytest.raises(ValueError, match=r"^prefill_backend: expected None or one of cudnn, xla, got 'flash'"):
        resolve_prefill_backend("flash", **how)
