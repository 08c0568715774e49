"""What the command line says of times that are given."""

import dataclasses

import pytest

from tests.tokenspeed.models.test_hf_config import QWEN
from tokenspeed.completion import Completion, Timings
from tokenspeed.figures import figures, said
from tokenspeed.models import hf_config, memory
from tokenspeed.models.kv_dtypes import KVDtypes

CONFIG = hf_config.from_dict(QWEN)
HOW = dict(
    config=CONFIG, dtype="bfloat16", kv=KVDtypes.of("bfloat16"), implementation="xla", batch=16, compile_s=1.0,
    ceiling_gbps=lambda: 50.0,
)  # fmt: skip


def completed(tokens=33, steps=32, seconds=0.5, samples=1):
    timings = Timings(compile_s=0.5, ttft_s=0.25, decode_s=seconds, decode_steps=steps)
    one = Completion(
        text="", token_ids=[1] * tokens, finish_reason="length", stop_reason=None, logprobs=None,
        prompt_token_ids=[1] * 10, timings=timings,
    )  # fmt: skip
    return dataclasses.replace(one, samples=[one] * samples)


def test_the_rate_is_of_steps_and_their_bytes():
    found = figures(completed(), **HOW)
    step = memory.decode_bytes(CONFIG, dtype="bfloat16", context=10 + 33 / 2)
    assert found["decode_tokens_per_s"] == 64.0 and found["bytes_per_step"] == round(step)
    assert found["achieved_gbps"] == pytest.approx(64 * step / 1e9, abs=1e-3)
    assert found["percent_of_ceiling"] == pytest.approx(100 * 64 * step / 50e9, abs=0.01)
    assert found["compile_s"] == 1.5 and found["ttft_ms"] == 250.0
    assert "decode 64.0 tokens/s" in said(found) and "in 1.5 s" in said(found)


def test_weights_are_read_once_for_the_samples_that_run_together():
    found = figures(completed(samples=128), **HOW)
    assert found["samples"] == 128 and found["samples_at_a_time"] == 16
    assert found["bytes_per_step"] == round(memory.decode_bytes(CONFIG, dtype="bfloat16", context=26.5, batch=16))


def test_a_cache_in_8_bits_has_fewer_bytes():
    whole, less = (figures(completed(), **HOW | dict(kv=KVDtypes.of(dtype))) for dtype in ("bfloat16", "int8"))
    assert whole["bytes_per_step"] - less["bytes_per_step"] == round(26.5 * CONFIG.kv_bytes_per_token(1))


def test_what_ended_early_is_not_read_on():
    running, ended = completed(), completed(tokens=16)
    both = dataclasses.replace(running, samples=[running, ended])
    found = figures(both, **HOW)
    assert found["bytes_per_step"] == round(
        memory.decode_bytes(CONFIG, dtype="bfloat16", context=(26.5 + 18 / 2) / 2, batch=2)
    )


@pytest.mark.parametrize(
    "whole, changed", [(completed(tokens=1, steps=0, seconds=0.0), {}), (completed(), dict(implementation="interpret"))]
)
def test_what_was_not_measured_is_left_out(whole, changed):
    unmeasured = dict(ceiling_gbps=lambda: pytest.fail("there is nothing to hold against the ceiling"))
    found = figures(whole, **(HOW | changed | unmeasured))
    for name in ("decode_tokens_per_s", "bytes_per_step", "achieved_gbps", "read_ceiling_gbps", "percent_of_ceiling"):
        assert found[name] is None
    assert "tokens/s" not in said(found) and "ceiling" not in said(found)
    assert ("TTFT" in said(found)) == (found["implementation"] == "xla")
