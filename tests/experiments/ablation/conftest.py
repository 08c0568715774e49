"""The step that the tests of ablations share: small, with a sliding window."""

import dataclasses

import pytest

from experiments.ablation.ablations import Step
from experiments.bench.models import config_of
from tokenspeed.models.config import LayerConfig

CONFIG = dataclasses.replace(
    config_of("llama-3.2-1b"), d_model=32, d_ff=48, num_heads=2, num_kv_heads=1, head_dim=16, vocab_size=60,
    layers=(LayerConfig(window=12),),
)  # fmt: skip


@pytest.fixture
def step_of(device):
    def make(**fields) -> Step:
        small = dict(
            model="llama-3.2-1b", config=CONFIG, batch=1, context=20, dtype="f32", ceiling_gbps=4000.0, device=device
        )
        return Step(**small | fields)

    return make
