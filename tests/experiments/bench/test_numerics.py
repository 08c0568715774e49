"""What counts as right."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from experiments.bench import cases, numerics, operands


@functools.cache
def drawn(op, rows=2, dtype="bf16", model="ragged"):
    """(oracle, state, streamed, result) of a call as a step by the kernels makes it, done by XLA."""
    call = cases.make(op, model, rows=rows, context=80, dtype=dtype).call
    state, streamed = operands.state(call, jax.random.key(1)), operands.streamed(call, jax.random.key(2))
    run = jax.jit(lambda state, streamed: cases.run(call, state, streamed, None, "xla"))
    return numerics.Oracle(call), state, streamed, run(state, streamed)


@pytest.mark.slow
@pytest.mark.parametrize("op", cases.OPS)
@pytest.mark.parametrize("rows, dtype", [(1, "bf16"), (2, "bf16"), (1, "f32")])
def test_the_reference_is_right(op, rows, dtype):
    oracle, state, streamed, result = drawn(op, rows, dtype)
    verdict = oracle.judge(result, state, streamed)
    assert verdict.reason == ""
    # Operands rounded to 8 bits of mantissa are off by 0.2% each; float32 sums of some hundred terms by 1e-6.
    assert verdict.error < (1e-2 if dtype == "bf16" else 1e-5)
    if dtype == "bf16" and op != "head":  # what a tile is compared with is not nothing
        assert verdict.error_xla > 0


@pytest.mark.slow
@pytest.mark.parametrize("op, model", [("down", "ragged-int4-g32"), ("qkv", "ragged-int8"), ("gate_up", "ragged-fp8")])
def test_quantised_weights_are_judged_by_what_they_stand_for(op, model):
    oracle, state, streamed, _ = drawn(op, model=model)
    assert isinstance(streamed, pk.QuantisedWeight)
    result = cases.run(oracle.call, state, streamed, None, "interpret")
    verdict = oracle.judge(result, state, streamed)
    assert verdict.reason == "" and 0 < verdict.error < 1e-2
    other = dataclasses.replace(streamed, scales=2 * streamed.scales)
    wrong = oracle.judge(cases.run(oracle.call, state, other, None, "interpret"), state, streamed)
    assert wrong.reason.startswith("wrong: relative RMS error")


@pytest.mark.slow
@pytest.mark.parametrize("op", ["out", "gate_up"])
def test_fixed_point_is_judged_by_what_it_stands_for(op):
    tiles = pk.Tiles(block_n=32, block_k=32, num_warps=1)
    call = cases.make(op, "ragged-int4-g32", rows=2).call.cut(tiles)
    state, streamed = operands.state(call, jax.random.key(1)), operands.streamed(call, jax.random.key(2))
    oracle, result = numerics.Oracle(call), cases.run(call, state, streamed, tiles, "interpret")
    verdict = oracle.judge(result, state, streamed)
    assert verdict.reason == "" and 0 < verdict.error < 1e-2

    def without_low_bytes(x):
        return dataclasses.replace(x, numbers=x.numbers.at[:, 1].set(0)) if isinstance(x, pk.FixedPointRows) else x

    def spoilt(tree):
        return jax.tree.map(without_low_bytes, tree, is_leaf=lambda x: isinstance(x, pk.FixedPointRows))

    if op == "out":
        verdict = oracle.judge(spoilt(result), state, streamed)
    else:
        verdict = oracle.judge(cases.run(call, spoilt(state), streamed, tiles, "interpret"), state, streamed)
    assert verdict.reason.startswith("wrong")


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", ["int8", "fp8", "auto/int8"])
def test_a_cache_in_8_bits_is_judged_by_what_it_stands_for(kv_dtype):
    call = cases.make("attention", "ragged", rows=2, context=80, kv_dtype=kv_dtype).call
    state, cache = operands.state(call, jax.random.key(1)), operands.streamed(call, jax.random.key(2))
    assert np.std(np.asarray(cache.v, np.float32) * np.asarray(cache.v_scale)[:, None, None]) > 0.9
    oracle, result = numerics.Oracle(call), cases.run(call, state, cache, None, "interpret")
    verdict = oracle.judge(result, state, cache)
    assert verdict.reason == "" and 0 < verdict.error < 1e-2
    other = dataclasses.replace(cache, v_scale=1.1 * cache.v_scale)
    wrong = oracle.judge(cases.run(call, state, other, None, "interpret"), state, cache)
    assert wrong.reason.startswith("wrong: relative RMS error")


@pytest.mark.slow
@pytest.mark.parametrize("op", [op for op in cases.OPS if op != "head"])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_one_wrong_row_is_wrong(op, value):
    oracle, state, streamed, result = drawn(op)
    first, *rest = result if isinstance(result, tuple) else (result,)
    if isinstance(first, pk.DeferredNorm):
        spoilt = dataclasses.replace(first, x=first.x.at[1].set(value))
    else:
        spoilt = first.at[1].set(value)
    verdict = oracle.judge((spoilt, *rest) if rest else spoilt, state, streamed)
    assert verdict.reason.startswith("wrong: relative RMS error")


@pytest.mark.slow
@pytest.mark.parametrize("op", ["out", "down"])
@pytest.mark.parametrize("part", ["rows", "squares", "total"])
def test_every_part_of_a_deferred_norm_is_judged(op, part):
    oracle, state, streamed, (deferred, total) = drawn(op, rows=1)
    assert isinstance(deferred, pk.DeferredNorm)
    spoilt = {
        "rows": (dataclasses.replace(deferred, x=deferred.x * 2), total),
        "squares": (dataclasses.replace(deferred, squares=deferred.squares * 4), total),  # by their root
        "total": (deferred, total * 2),
    }
    verdict = oracle.judge(spoilt[part], state, streamed)
    # Twice the truth, which is itself rounded to bf16 where it is rows.
    assert verdict.reason.startswith("wrong: relative RMS error 1") and verdict.error == pytest.approx(1, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["out", "down"])
def test_the_parts_of_the_squares_may_be_others_where_their_sum_is_the_same(op):
    """They follow the tiles: a kernel gives one of each of its programs."""
    oracle, state, streamed, (deferred, total) = drawn(op, rows=1)
    halves = jnp.concatenate([deferred.squares / 2] * 2, axis=1)
    verdict = oracle.judge((dataclasses.replace(deferred, squares=halves), total), state, streamed)
    assert verdict.reason == ""


@pytest.mark.slow
def test_a_cache_that_is_not_written_is_wrong():
    oracle, state, streamed, (q, _) = drawn("qkv")
    assert "wrong" in oracle.judge((q, state["cache"]), state, streamed).reason


@pytest.mark.slow
def test_a_token_of_another_row_is_wrong():
    oracle, state, streamed, (tokens, values) = drawn("head")
    assert tokens[0] != tokens[1]
    assert "wrong" in oracle.judge((tokens[::-1], values[::-1]), state, streamed).reason


@pytest.mark.parametrize(
    "errors, wrong", [([1.4e-3, 0.0], False), ([1.6e-3, 0.0], True), ([0.0, 2e-5], True), ([0.0, 0.9e-5], False)]
)
def test_a_result_is_compared_with_the_yardstick_array_by_array(errors, wrong):
    """At most 1.5 times XLA's error, or 1e-5 where XLA has none."""
    verdict = numerics.judge(errors, [1e-3, 0.0])
    assert bool(verdict.reason) == wrong and (verdict.error, verdict.error_xla) == (max(errors), 1e-3)


@pytest.mark.parametrize("weight_dtype, wrong", [(None, True), ("fp8", True), ("int8", False), ("int4", False)])
def test_fixed_point_is_allowed_for_where_activations_are(weight_dtype, wrong):
    shape = pk.StreamShape(rows=1, outputs=64, inputs=256, weight_dtype=weight_dtype)
    verdict = numerics.judge([2.5e-5], [0.0], numerics.tiny_of(shape))
    assert bool(verdict.reason) == wrong
    assert numerics.judge([3.5e-5], [0.0], numerics.tiny_of(shape)).reason


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
