"""Each hook into JAX's internals does what it is for: a new JAX that breaks one fails here, by name."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from pallas_kernels.common import hooks
from pallas_kernels.common.launch import launch
from pallas_kernels.common.stream_tiles import Tiles
from tests.pallas_kernels import inputs
from tests.pallas_kernels.lowering import for_gpu, lower


def lowered(kernel, key="h100") -> str:
    """The module of a kernel of one ref of 1024 floats; the strings of its bytecode are readable in it."""

    def run(x):
        return launch(
            lambda refs, y_ref: kernel(refs.x, y_ref),
            name="test",
            grid=(1,),
            inputs=dict(x=x),
            outputs=[jax.ShapeDtypeStruct((8,), jnp.float32)],
            num_warps=1,
            num_stages=1,
        )

    with for_gpu(key), pytest.warns(DeprecationWarning):
        specs = jax.ShapeDtypeStruct((1024,), jnp.float32)
        return jax.jit(run).trace(specs).lower(lowering_platforms=("cuda",)).as_text()


def store_zeros(x_ref, y_ref):
    y_ref[pl.ds(0, 8)] = jnp.zeros(8)


def test_pipeline_loop():
    def kernel(x_ref, y_ref, hooked):
        def body(i, total):
            if hooked:
                hooks.pipeline_loop(5)
            return total + x_ref[pl.ds(i * 8, 8)]

        y_ref[pl.ds(0, 8)] = jax.lax.fori_loop(0, 100, body, jnp.zeros(8))

    assert "tt.num_stages" not in lowered(lambda x, y: kernel(x, y, False))
    text = lowered(lambda x, y: kernel(x, y, True))
    assert "tt.num_stages" in text, "hooks.pipeline_loop: the loop has no attribute tt.num_stages"


def test_multiply_add():
    def kernel(x_ref, y_ref, hooked):
        x = x_ref[pl.ds(0, 8)]
        y_ref[pl.ds(0, 8)] = hooks.multiply_add(x, x, x) if hooked else x * x + x

    assert "fma" not in lowered(lambda x, y: kernel(x, y, False))
    assert "fma" in lowered(lambda x, y: kernel(x, y, True)), "hooks.multiply_add: no fused operation"
    with pytest.raises(TypeError, match="one shape and dtype"):
        jax.make_jaxpr(hooks.multiply_add)(jnp.zeros(8), jnp.zeros(16), jnp.zeros(8))


def test_prefetch_l2():
    def kernel(x_ref, y_ref):
        hooks.prefetch_l2(x_ref.at[32], 128)
        store_zeros(x_ref, y_ref)

    assert "cp.async.bulk.prefetch.L2" in lowered(kernel), "hooks.prefetch_l2: no prefetch instruction in the kernel"


def test_prefetch_l2_under_a_condition():
    def kernel(x_ref, y_ref):
        @pl.when(pl.program_id(0) == 0)
        def _():
            hooks.prefetch_l2(x_ref.at[0], 128)

        store_zeros(x_ref, y_ref)

    assert "cp.async.bulk.prefetch.L2" in lowered(kernel), "hooks.prefetch_l2: lost under pl.when"


@pytest.mark.parametrize("key, expected", [("a100", False), ("h100", True), ("b200", True)])
def test_launch_dependents(key, expected):
    def kernel(x_ref, y_ref):
        hooks.launch_dependents()
        store_zeros(x_ref, y_ref)

    found = "grid_dependency_launch_dependents" in lowered(kernel, key)
    assert found == expected, f"hooks.launch_dependents: expected {expected} on {key}"


def test_the_kernels_use_them():
    call = inputs.projection(inputs.Shapes(), rows=1, outputs=512, inputs=4096)
    tiles = Tiles(block_n=4, block_k=512, num_stages=4)
    assert "tt.num_stages" in lower(call, tiles)
    assert "tt.num_stages" not in lower(call, dataclasses.replace(tiles, num_stages=1))
    assert "cp.async.bulk.prefetch.L2" not in lower(call, tiles)
    ahead = call.replace(prefetch=call.arrays["weight"]).set(prefetch_bytes=2**20)
    assert "cp.async.bulk.prefetch.L2" in lower(ahead, tiles)
    assert "grid_dependency_launch_dependents" in lower(call, tiles)


def test_interpret_mode_does_without_them():
    call = inputs.projection(inputs.Values(0), rows=1, outputs=16, inputs=96, dtype="float32")
    tiles = Tiles(block_n=4, block_k=16, num_stages=4)
    plain = call("interpret", tiles)
    ahead = call.replace(prefetch=call.arrays["weight"]).set(prefetch_bytes=2**20)
    assert jnp.array_equal(ahead("interpret", tiles), plain)
