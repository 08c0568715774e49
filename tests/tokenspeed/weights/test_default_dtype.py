"""The dtype of weights where nobody asks for one."""

import dataclasses

import pytest

from tokenspeed.models.config import LayerConfig, ModelConfig, Rope
from tokenspeed.weights import default_dtype as module
from tokenspeed.weights.default_dtype import default_dtype

SMALL = ModelConfig(
    family="llama", vocab_size=96, d_model=32, d_ff=64, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=128,
    eps=1e-5, rope=Rope(theta=10000.0), layers=(LayerConfig(),),
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "backend, implementation, expected",
    [("cpu", "xla", "float32"), ("cpu", "interpret", None), ("gpu", "xla", None), ("gpu", "triton", None)],
)
def test_float32_is_for_a_cpu_that_decodes(monkeypatch, dtype, backend, implementation, expected):
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    config = dataclasses.replace(SMALL, dtype=dtype)
    assert default_dtype(config, implementation) == (expected or dtype)


def test_what_fits_in_half_the_memory_stays_narrow(monkeypatch):
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    monkeypatch.setattr(module, "available_bytes", lambda: 4 * config.num_parameters)
    assert default_dtype(config, "xla") == "bfloat16"
