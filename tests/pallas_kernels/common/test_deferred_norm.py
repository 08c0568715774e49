"""Deferred RMSNorm: the kernels that use such rows, and what those that make them leave as it is.

Ragged shapes of the makers are in tests/projection.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.common.deferred_norm import defer_norm, finish_norm
from pallas_kernels.common.stream_tiles import Tiles
from tests.pallas_kernels import covering, inputs, oracle
from tests.pallas_kernels.compare import assert_right, assert_right_head, assert_same_bits
from tests.pallas_kernels.inputs import Layout
from tests.pallas_kernels.lowering import lower
from tests.pallas_kernels.marks import slow

VECTORS = Tiles(block_n=4, block_k=32)
TENSOR_CORES = Tiles(block_n=16, block_k=32, num_stages=3, mma=True)
PIPELINED = Tiles(block_n=4, block_k=16, num_stages=3)
FORMS = pytest.mark.parametrize(
    "tiles", [slow(VECTORS), TENSOR_CORES, slow(PIPELINED)], ids=["vectors", "tensor cores", "pipelined"]
)
OPS = pytest.mark.parametrize("op", ["qkv", "gate_up", "head_logits"])
WIDTH = 80


def user(op, rows, dtype="bfloat16", draw=None):
    """A call of an op that takes a deferred norm, with every option that has a part in it."""
    common = dict(rows=rows, width=WIDTH, dtype=dtype, bias=True, norm_offset=1.0)
    draw = draw or inputs.Values(rows)
    match op:
        case "qkv":
            call = inputs.qkv(draw, heads=4, kv_heads=2, head_dim=24, layout=Layout(19), **common)
        case "gate_up":
            call = inputs.gate_up(draw, features=37, **common)
        case _:
            call = inputs.head(draw, getattr(pk, op), vocabulary=37, **common)
    return inputs.deferred(draw, call)


@pytest.mark.parametrize("part", [1, 7, 100])
def test_both_parts_are_a_norm(part):
    """In float32, but for the order of a sum of a hundred squares and one more rounding."""
    draw = inputs.Values(0)
    rows, weight = draw.normal(3, 100, dtype="float32", scale=3.0), draw.normal(100, dtype="bfloat16")
    deferred = defer_norm(rows, weight, 0.5, dtype="float32", part=part)
    assert deferred.squares.shape == (3, -(-100 // part))
    whole = oracle.rms_norm(np.float64(rows), np.float64(weight), 1e-2, 0.5)
    np.testing.assert_allclose(finish_norm(deferred, None, 1e-2, 0.0), whole, rtol=1e-6)


@pytest.mark.slow
@FORMS
@pytest.mark.parametrize(
    "implementation, dtype", [("interpret", "bfloat16"), ("interpret", "float32"), ("xla", "float16")]
)
def test_the_stream_is_that_without_a_norm(implementation, dtype, tiles):
    """And the rows are it times the norm's weight, rounded once; the squares are of it, of each block."""
    call = inputs.projection(inputs.Values(0), rows=3, outputs=37, inputs=WIDTH, dtype=dtype, norm=True)
    norm = call.arrays["norm"]
    arrays = {name: array for name, array in call.arrays.items() if name != "norm"}
    stream = pk.down(**arrays, out_dtype="float32", implementation=implementation, tiles=tiles)
    rows, same = pk.down(**arrays, norm=norm, implementation=implementation, tiles=tiles)
    assert_same_bits(same, stream)
    assert_same_bits(rows.x, (stream * norm.astype(jnp.float32)).astype(dtype))
    blocks = defer_norm(stream, norm, 0.0, dtype=dtype, part=tiles.block_n).squares
    np.testing.assert_allclose(rows.squares, blocks, rtol=1e-6)  # a few float32 terms in another order


CASES = covering.all_pairs(
    op=("gate_up", "head_logits", "qkv"),
    tiles=(TENSOR_CORES, VECTORS, PIPELINED),
    dtype=("bfloat16", "float32", "float16"),
    one_row=(False, True),
)


@pytest.mark.parametrize("seed, case", covering.parameters(CASES, quick=(0,)))
def test_users(seed, case):
    """Kernel (in guarded buffers) and reference agree with the oracle within `compare.TOLERANCES`."""
    tiles = case["tiles"]
    rows = 1 if case["one_row"] else 16 if tiles.mma else 3
    assert_right(user(case["op"], rows, case["dtype"], inputs.Values(seed)), tiles)


@pytest.mark.slow
@FORMS
@pytest.mark.parametrize("rows", [1, 5])
def test_the_head(rows, tiles):
    assert_right_head(user("head", rows, "float32"), tiles)


@pytest.mark.slow
@FORMS
@pytest.mark.parametrize("op", ["gate_up", "head_logits"])
def test_a_row_does_not_depend_on_the_others(op, tiles):
    call = user(op, 3)
    alone = call.replace(x=jax.tree.map(lambda rows: rows[:1], call.arrays["x"]))
    assert_same_bits(alone("interpret", tiles), call("interpret", tiles)[:1])


@pytest.mark.slow
@pytest.mark.parametrize("op", ["qkv", "gate_up", "head", "head_logits"])
def test_no_launch_is_left_of_the_norm(op):
    call = user(op, 3, draw=inputs.Shapes())
    for tiles in (TENSOR_CORES, VECTORS):
        assert 'name = "norm"' not in lower(call, tiles)


@pytest.mark.slow
@OPS
def test_what_does_not_go_together(op):
    call = user(op, 2)
    rows = call.arrays["x"]
    with pytest.raises(ValueError, match=r"^norm: expected None for rows of a deferred norm"):
        call("xla", norm=jnp.ones(WIDTH))
    with pytest.raises(ValueError, match=rf"^norm: expected shape \[{WIDTH}\], got None"):
        call("xla", x=rows.x)
    with pytest.raises(ValueError, match=r"^x.squares: expected shape \[2, parts\], got \[1, "):
        call("xla", x=pk.DeferredNorm(x=rows.x, squares=rows.squares[:1]))
    with pytest.raises(TypeError, match=r"^x.squares: expected dtype float32, got bfloat16"):
        call("xla", x=pk.DeferredNorm(x=rows.x, squares=rows.squares.astype(jnp.bfloat16)))
    with pytest.raises(TypeError, match=r"^weight: expected the dtype of x, float32, got bfloat16"):
        call("xla", x=pk.DeferredNorm(x=rows.x.astype(jnp.float32), squares=rows.squares))
    with pytest.raises(ValueError, match=r"^x.x: expected shape \[B, D\] with nothing 0, got \[0, "):
        call("xla", x=pk.DeferredNorm(x=rows.x[:0], squares=rows.squares[:0]))


def test_the_weight_is_as_wide_as_the_rows():
    call = inputs.projection(inputs.Values(0), rows=2, outputs=24, inputs=32, norm=True)
    with pytest.raises(ValueError, match=r"^norm: expected shape \[24\], got \[23\]"):
        call("xla", norm=call.arrays["norm"][:23])


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["interpret", "xla"])
def test_gradients_reach_through_both_parts(implementation):
    """Those of a projection and the op after it, against those of the same with the norm in one piece."""
    first = inputs.projection(inputs.Values(0), rows=2, outputs=WIDTH, inputs=24, dtype="float32", out_dtype="float32")
    second = inputs.gate_up(inputs.Values(1), rows=2, width=WIDTH, features=20, dtype="float32").arrays
    arrays = {name: array for name, array in first.arrays.items() if name != "norm"}

    def deferred(x, norm):
        rows, _ = pk.down(**arrays | dict(x=x), norm=norm, implementation=implementation)
        return jnp.sum(pk.gate_up(rows, None, second["weight"], implementation=implementation) ** 2)

    def whole(x, norm):
        y = pk.down(**arrays | dict(x=x), implementation="xla")
        return jnp.sum(pk.gate_up(y, norm, second["weight"], implementation="xla") ** 2)

    operands = arrays["x"], second["norm"]
    for got, expected in zip(jax.grad(deferred, (0, 1))(*operands), jax.grad(whole, (0, 1))(*operands), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)  # float32, sums in another order
