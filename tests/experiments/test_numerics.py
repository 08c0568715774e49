"""What counts as right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cases, numerics


def drawn(op, rows=2, dtype="bf16"):
    case = cases.make(op, "tiny", rows=rows, context=80, dtype=dtype)
    state, streamed = case.state(jax.random.key(1)), case.streamed(jax.random.key(2))
    return case, state, streamed, case.call(state, streamed, None, "xla")


@pytest.mark.parametrize("op", cases.OPS)
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_the_reference_is_right(op, dtype):
    case, state, streamed, called = drawn(op, dtype=dtype)
    verdict = numerics.Oracle(case).judge(called, state, streamed)
    assert verdict.reason == ""
    assert verdict.error < (1e-2 if dtype == "bf16" else 1e-5)


@pytest.mark.parametrize("op", [op for op in cases.OPS if op != "head"])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_one_wrong_row_is_wrong(op, value):
    case, state, streamed, (result, after) = drawn(op)
    verdict = numerics.Oracle(case).judge((result.at[1].set(value), after), state, streamed)
    assert verdict.reason.startswith("wrong: relative RMS error")


def test_a_cache_that_is_not_written_is_wrong():
    case, state, streamed, (result, _) = drawn("qkv")
    assert "wrong" in numerics.Oracle(case).judge((result, state), state, streamed).reason


def test_head_tokens_and_logits():
    truth = np.array([[0.0, 3.0, 1.0, 2.9999], [5.0, 0.0, 0.0, 1.0]], np.float32)
    yardstick = truth + np.array([0.003, -0.003, 0.003, -0.003], np.float32)

    def reason(tokens, values):
        return numerics.judge_head(np.array(tokens), np.array(values, np.float32), truth, yardstick).reason

    assert reason([1, 0], [3.0, 5.0]) == ""
    assert reason([3, 0], [2.9999, 5.0]) == ""  # as large within the error
    assert "below the largest" in reason([2, 0], [1.0, 5.0])
    assert "logit off by" in reason([1, 0], [3.2, 5.0])
    assert "logit off by" in reason([1, 0], [np.nan, 5.0])
    assert "token [1, 4] of 4" in reason([1, 4], [3.0, 5.0])
    assert "token [-1, 0] of 4" in reason([-1, 0], [3.0, 5.0])


def test_relative_rms():
    assert numerics.relative_rms(jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0])) == 0
    assert numerics.relative_rms(np.array([3.0, 4.0]), np.array([0.0, 0.0])) > 1e6
    assert numerics.relative_rms(np.array([1.1, 1.1]), np.array([1.0, 1.0])) == pytest.approx(0.1)
