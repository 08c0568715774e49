"""RMSNorm as a kernel of its own, and the tensor-core kernels that it goes ahead of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.common.checks import DTYPES
from pallas_kernels.common.launch import guarded
from pallas_kernels.common.prenorm import Norm, rms_norm
from pallas_kernels.common.stream_tiles import Tiles
from tests.pallas_kernels import covering, inputs, oracle
from tests.pallas_kernels.compare import assert_close, assert_right, assert_right_head, assert_same_bits
from tests.pallas_kernels.inputs import Layout
from tests.pallas_kernels.lowering import lower
from tests.pallas_kernels.marks import slow

VECTORS = Tiles(block_n=4, block_k=32)
TENSOR_CORES = Tiles(block_n=16, block_k=32, num_stages=3, mma=True)
WIDTH = 100
"""No power of two, and no multiple of a block."""


def of_op(op, rows, dtype="bfloat16", draw=None):
    common = dict(rows=rows, width=WIDTH, dtype=dtype, norm_offset=1.0)
    draw = draw or inputs.Values(rows)
    match op:
        case "qkv":
            return inputs.qkv(draw, heads=4, kv_heads=2, head_dim=24, layout=Layout(19), bias=True, **common)
        case "gate_up":
            return inputs.gate_up(draw, features=37, bias=True, **common)
    return inputs.head(draw, getattr(pk, op), vocabulary=37, bias=True, **common)


@pytest.mark.parametrize("dtype", ["bfloat16", slow("float16"), slow("float32")])
@pytest.mark.parametrize(
    "rows, width, offset", [slow(1, 1, 0.0), (3, 100, 1.0), slow(8, 128, 0.0), slow(16, 1000, 1.0)]
)
def test_the_kernel(rows, width, offset, dtype):
    """Within what rounding the result costs (`compare.TOLERANCES`); its sums are float32 whatever the dtype."""
    draw = inputs.Values(width)
    x, weight = draw.normal(rows, width, dtype=dtype, scale=3.0), draw.normal(width, dtype=dtype)
    norm = Norm(eps=1e-2, offset=offset)
    plain = rms_norm(norm, x, weight, dtype, interpret=True)
    expected = oracle.rms_norm(np.float64(x), np.float64(weight), norm.eps, offset)
    assert plain.dtype == x.dtype
    assert_close(plain, (expected,), dtype)
    with guarded():
        assert_same_bits(rms_norm(norm, x, weight, dtype, interpret=True), plain)


def test_the_weight_may_be_of_another_dtype():
    x = inputs.Values(0).normal(2, WIDTH, dtype="bfloat16")
    weight = jnp.linspace(0.5, 2.0, WIDTH, dtype=jnp.float32)
    y = rms_norm(Norm(eps=1e-5), x, weight, "bfloat16", interpret=True)
    assert_close(y, (oracle.rms_norm(np.float64(x), np.float64(weight), 1e-5, 0.0),), "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", covering.all_pairs(op=("qkv", "gate_up", "head_logits"), rows=(3, 8, 16), dtype=DTYPES), ids=str
)
def test_ahead_of_tensor_cores(case):
    """Kernel (in guarded buffers) and reference agree with the oracle within `compare.TOLERANCES`.

    Those hold one rounding of the normed x, which this kernel and the reference do alike.
    """
    assert_right(of_op(**case), TENSOR_CORES)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 8, 16])
def test_ahead_of_the_head(rows):
    assert_right_head(of_op("head", rows, "float32"), TENSOR_CORES)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_row_is_normed_as_the_reference_norms_it(dtype):
    """With weights of the identity a projection passes on what it is given, but for the order of float32 sums."""
    call = of_op("head_logits", 5, dtype)
    weight = pk.DenseWeight(values=jnp.eye(WIDTH, dtype=dtype))
    kernel, reference = (call.replace(weight=weight)(how, TENSOR_CORES) for how in ("interpret", "xla"))
    # A last digit of difference in a float32 sum of squares may turn one rounding to dtype: one unit, 2^-7 at most.
    np.testing.assert_allclose(kernel, reference, rtol={"bfloat16": 2**-7, "float16": 2**-10, "float32": 1e-6}[dtype])


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    covering.all_pairs(op=("qkv", "gate_up", "head_logits"), dtype=("bfloat16", "float16"), mma=(False, True)),
    ids=str,
)
def test_float32_rows_of_narrow_weights(case):
    op, dtype = case["op"], case["dtype"]
    call = inputs.streamed(inputs.Values(0), of_op(op, 3, dtype))
    result = assert_right(call, TENSOR_CORES if case["mma"] else VECTORS)
    assert jax.tree.leaves(result)[0].dtype == (jnp.float32 if op == "head_logits" else dtype)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["interpret", "xla"])
def test_float32_rows_are_rounded_once(implementation):
    """Once normed; rounded before as well, a quarter of them would be another number in the end."""
    call = inputs.streamed(inputs.Values(0), of_op("head_logits", 5))
    call = call.replace(weight=pk.DenseWeight(values=jnp.eye(WIDTH, dtype="bfloat16")))
    normed = oracle.rms_norm(np.float64(call.arrays["x"]), np.float64(call.arrays["norm"]), 1e-5, 1.0)
    same = call(implementation, TENSOR_CORES) == normed.astype(jnp.bfloat16)
    assert same.mean() > 0.99  # float32 errors turn a rounding here and there


@pytest.mark.slow
@pytest.mark.parametrize("op", ["qkv", "gate_up", "head", "head_logits"])
def test_vectors_need_no_launch_for_it(op):
    call = of_op(op, 3, draw=inputs.Shapes())
    assert 'name = "norm"' in lower(call, TENSOR_CORES)
    assert 'name = "norm"' not in lower(call, VECTORS)
