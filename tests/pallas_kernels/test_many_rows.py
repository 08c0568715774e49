"""More rows than one launch takes: the same as launch by launch, and nothing is lost at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from tests.pallas_kernels import inputs
from tests.pallas_kernels.compare import assert_right, assert_same_bits
from tests.pallas_kernels.inputs import Layout
from tests.pallas_kernels.marks import slow

ROWS = 259
"""One launch and a part of another."""
HEADS = dict(heads=4, kv_heads=2, head_dim=8)


def call_of(op, rows=ROWS, **options):
    draw = inputs.Values(rows)
    match op:
        case "qkv":
            return inputs.qkv(draw, rows=rows, width=40, layout=Layout(4, 3), **HEADS, **options)
        case "attention":
            return inputs.attention(draw, rows=rows, layout=Layout(16, 2), counters=True, **HEADS, **options)
        case "gate_up":
            return inputs.gate_up(draw, rows=rows, width=40, features=37, **options)
        case "head_logits":
            return inputs.head(draw, rows=rows, width=40, vocabulary=37, **options)
    return inputs.projection(draw, getattr(pk, op), rows=rows, outputs=37, inputs=40, **options)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["out", *map(slow, ("qkv", "attention", "down", "gate_up", "head_logits"))])
def test_kernel_and_reference_are_right(op):
    """Of several rows a sequence where there are sequences; a row each is what the tests below have."""
    assert_right(call_of(op, **dict(sequences=60, padding=2) if op in ("qkv", "attention") else {}), None)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["qkv", "attention"])
@pytest.mark.parametrize("layout", [Layout(12), Layout(4, 3)], ids=["contiguous", "paged"])
def test_without_sequence_row_i_is_sequence_i(op, layout):
    make = inputs.qkv if op == "qkv" else inputs.attention
    options = dict(width=40) if op == "qkv" else {}
    call = make(inputs.Values(1), rows=ROWS, layout=layout, **options, **HEADS)
    order = np.argsort(call.arrays["sequence"])
    where = "positions" if op == "qkv" else "lengths"
    call = call.replace(sequence=jnp.arange(ROWS, dtype=jnp.int32), **{where: call.arrays[where][order]})
    assert_same_bits(call("interpret", sequence=None), call("interpret"))


@pytest.mark.slow
def test_a_deferred_norm_of_many_rows():
    """The last launch has fewer rows, other tiles, and so its squares in other parts."""
    call = call_of("down", norm=True)
    assert_right(call, None)
    arrays = call.arrays
    deferred, total = pk.down(**arrays, implementation="interpret")
    user = call_of("gate_up").arrays["weight"]
    weight = pk.DenseWeight(values=jnp.resize(user.values, (11, 2, 37)))
    y = pk.gate_up(deferred, None, weight, implementation="interpret")
    expected = pk.gate_up(total, arrays["norm"], weight, implementation="xla")
    np.testing.assert_allclose(np.float32(y), np.float32(expected), rtol=2**-6, atol=2**-6)  # a few bf16 roundings


@pytest.mark.slow
@pytest.mark.parametrize("op", ["qkv", "attention", "down", "gate_up", "head_logits"])
def test_rows_are_those_of_smaller_calls(op):
    """Bit by bit what a call of the first rows alone gives: a launch is a launch."""
    call = call_of(op)
    by_row = {"x", "q", "residual", "positions", "lengths", "sequence", "counters"}
    few = {name: array[:256] for name, array in call.arrays.items() if name in by_row and array is not None}
    whole, part = (jax.tree.leaves(result)[0] for result in (call("interpret"), call("interpret", **few)))
    assert_same_bits(whole[:256], part)
