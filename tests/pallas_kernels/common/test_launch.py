"""The guarded launch finds the faults that it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.common.launch import guarded, is_guarded, launch

SIZE = 8


def run(kernel, x, dtype=jnp.float32):
    (y,) = launch(
        lambda refs, y_ref: kernel(refs.x, y_ref),
        name="test",
        grid=(1,),
        inputs=dict(x=x),
        outputs=[jax.ShapeDtypeStruct((SIZE,), dtype)],
        num_warps=1,
        num_stages=1,
        interpret=True,
    )
    return y


def copy(read=SIZE, write=SIZE):
    """Copies the first `write` elements, adding the sum of the first `read` of x less that of the right ones."""

    def kernel(x_ref, y_ref):
        value = plt.load(x_ref.at[pl.ds(0, SIZE)])
        extra = jnp.sum(plt.load(x_ref.at[pl.ds(0, read)])) - jnp.sum(value) if read != SIZE else 0.0
        value = jnp.concatenate([value, value])[:write]
        plt.store(y_ref.at[pl.ds(0, write)], (value + extra).astype(y_ref.dtype))

    return kernel


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
def test_a_right_kernel_is_left_alone(dtype):
    x = jnp.arange(SIZE, dtype=jnp.float32)
    with guarded():
        assert is_guarded()
        np.testing.assert_array_equal(run(copy(), x, dtype), x)
    assert not is_guarded()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel, wrong",
    [
        (copy(read=SIZE + 1), slice(None)),
        (copy(write=SIZE - 1), slice(SIZE - 1, None)),
        (copy(write=SIZE + 1), slice(None)),
    ],
    ids=["reads past the input", "leaves an element unwritten", "writes past the output"],
)
def test_a_fault_is_nan(kernel, wrong):
    with guarded():
        y = run(kernel, jnp.arange(SIZE, dtype=jnp.float32))
    assert jnp.isnan(y[wrong]).all()


def test_guarded_and_plain_calls_are_compiled_apart():
    from tests.pallas_kernels import inputs

    call = inputs.projection(inputs.Values(0), rows=1, outputs=5, inputs=20, dtype="float32")
    plain = call("interpret")
    with guarded():
        np.testing.assert_array_equal(call("interpret"), plain)
