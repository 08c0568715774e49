"""Operations and bytes of prefill, counted by hand on a small model."""

import dataclasses

import pytest

from experiments.bench import formats
from experiments.bench.models import config_of
from experiments.prefill import cost
from experiments.prefill.options import Case
from tests.experiments.decode.small import CONFIG
from tokenspeed.models.config import LayerConfig

OF_LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
"""Multiply-adds of a token: queries, keys and values, out, and the MLP."""
TABLE = 96 * 32


def windowed(window):
    return dataclasses.replace(CONFIG, layers=(LayerConfig(), LayerConfig(window=window)))


def test_operations_of_prompts():
    seen = 1 + 2 + 3 + 4 + 5
    expected = 2 * (5 * OF_LAYER + 2 * 32 * seen) + TABLE
    assert cost.flop(CONFIG, Case(batch=1, tokens=5)) == 2 * expected
    assert cost.flop(CONFIG, Case(batch=3, tokens=5)) == 6 * expected
    assert cost.flop(windowed(2), Case(batch=1, tokens=5)) == 2 * (expected - 2 * 32 * (seen - (1 + 2 + 2 + 2 + 2)))


def test_operations_of_a_chunk():
    """Without the head."""
    assert cost.flop(CONFIG, Case(batch=1, tokens=2, start=7)) == 2 * 2 * (2 * OF_LAYER + 2 * 32 * (8 + 9))
    assert cost.flop(windowed(3), Case(batch=1, tokens=2, start=7)) == 2 * (4 * OF_LAYER + 2 * 32 * (8 + 9 + 3 + 3))


def test_bytes():
    """Weights once; keys and values (2 x 16 numbers a layer and position) of what is read and of what is written."""
    layers = CONFIG.num_parameters - TABLE
    prompts = cost.moved_bytes(CONFIG, "f32", Case(batch=3, tokens=5))
    assert prompts == 4 * (layers + TABLE + 15 * 32 + 3 * 2 * 5 * 32), "the table is the head, and a row of each token"
    chunk = cost.moved_bytes(CONFIG, "bf16", Case(batch=3, tokens=5, start=7))
    assert chunk == 2 * (layers + 15 * 32 + 3 * 2 * (7 + 5) * 32), "no head"
    slid = cost.moved_bytes(windowed(4), "bf16", Case(batch=3, tokens=5, start=7))
    assert chunk - slid == 2 * 3 * (7 - 3) * 32
    untied = dataclasses.replace(CONFIG, tied=False)
    assert cost.moved_bytes(untied, "f32", Case(batch=3, tokens=5)) == prompts


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_quantised_weights(tied):
    """A byte a number and a scale of 2 bytes an output; a head of its own is quantised too, and no part of a chunk."""
    config = formats.quantised(dataclasses.replace(CONFIG, tied=tied), formats.parsed("int8"))
    outputs = 32 + 2 * 16 + 32 + 2 * 48 + 32
    layers = 2 * (OF_LAYER + 2 * outputs + 4 * 2 * 32) + 4 * 32  # norms are as they were
    for start, head in ((0, TABLE + 2 * 96), (7, 0)):
        case = Case(batch=3, tokens=5, start=start)
        expected = layers + head + 4 * (15 * 32 + 3 * 2 * (start + 5) * 32)
        assert cost.moved_bytes(config, "f32", case) == expected
        assert cost.flop(config, case) == cost.flop(CONFIG, case)


def test_the_floor():
    of_bytes = dict(moved=4 * 10**9, ceiling_gbps=4000.0)
    h200 = "NVIDIA H200"
    assert cost.floor_ms(flop=1, device=h200, dtype="bf16", **of_bytes) == pytest.approx(1.0)
    assert cost.floor_ms(flop=10**13, device=h200, dtype="bf16", **of_bytes) == pytest.approx(1e4 / 989.4)
    for device, dtype in ((h200, "f32"), ("cpu x", "bf16")):
        assert cost.floor_ms(flop=10**13, device=device, dtype=dtype, **of_bytes) == pytest.approx(1.0), "no peak"


def test_a_published_size():
    """A prompt of 8192 of Llama 3.1 8B: 2 operations a weight and token, and a tenth more for attention."""
    case = Case(batch=1, tokens=8192)
    config = config_of("llama-3.1-8b")
    weights = config.num_parameters - 2 * config.vocab_size * config.d_model
    assert cost.flop(config, case) / (2 * weights * 8192) == pytest.approx(1.154, abs=0.01)
