"""Each hook into JAX's internals does what it is for: a new JAX that breaks one fails here, by name."""

import builtins
import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from pallas_kernels.common import hooks
from pallas_kernels.common.launch import launch
from pallas_kernels.common.stream_tiles import Tiles
from tests.pallas_kernels import inputs
from tests.pallas_kernels.lowering import for_gpu, lower


def lowered(kernel, key="h100", dtype=jnp.float32) -> str:
    """The module of a kernel of one ref of 1024 numbers; the strings of its bytecode are readable in it."""

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
        specs = jax.ShapeDtypeStruct((1024,), dtype)
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


@pytest.mark.parametrize("masked", [False, True])
def test_load_words(masked):
    def kernel(x_ref, y_ref):
        mask = jnp.arange(8) < 3 if masked else None
        y_ref[pl.ds(0, 8)] = hooks.load_words(x_ref, lambda along: (along,), 4, 8, mask).astype(jnp.float32)

    assert "bitcast" in lowered(kernel, dtype=jnp.int8), "hooks.load_words: the bytes are not seen as words"
    with hooks.without_hooks("load_words"):
        assert "bitcast" not in lowered(kernel, dtype=jnp.int8)


@pytest.mark.parametrize("masked", [False, True])
def test_load_near(masked):
    """The start is added to the address before the offsets are."""

    def kernel(x_ref, y_ref):
        offsets, mask = 2 * jnp.arange(8, dtype=jnp.int32), jnp.arange(8) < 3 if masked else None
        y_ref[pl.ds(0, 8)] = hooks.load_near(x_ref, (64 * pl.program_id(0),), (offsets,), mask)

    text = lowered(kernel)
    with hooks.without_hooks("load_near"):
        assert text != lowered(kernel), "hooks.load_near: the load is the backend's own"


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8])
def test_load_vectors(dtype):
    def kernel(x_ref, y_ref):
        found = hooks.load_vectors(x_ref, (64 * pl.program_id(0),), (16 * jnp.arange(8, dtype=jnp.int32),), 4)
        y_ref[pl.ds(0, 8)] = sum(found).astype(jnp.float32)

    assert "ld.global.v4.b32" in lowered(kernel, dtype=dtype), "hooks.load_vectors: the backend's own loads"
    with hooks.without_hooks("load_vectors"):
        assert "ld.global.v4.b32" not in lowered(kernel, dtype=dtype)


@pytest.mark.parametrize(
    "width, dtype, error, match",
    [
        (3, jnp.int32, ValueError, "^load_vectors: expected a width of 2 or 4 words, got 3"),
        (True, jnp.int32, ValueError, "^load_vectors: expected a width of 2 or 4 words, got True"),
        (4, jnp.float32, TypeError, "^load_vectors: expected a ref of int32 or int8, got float32"),
        (4, jnp.uint8, TypeError, "^load_vectors: expected a ref of int32 or int8, got uint8"),
    ],
)
def test_what_load_vectors_refuses(width, dtype, error, match):
    with pytest.raises(error, match=match):
        hooks.load_vectors(jnp.zeros(64, dtype), (0,), (jnp.arange(8, dtype=jnp.int32),), width)


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


@pytest.fixture
def fresh_hooks():
    """A copy of the hooks that has been used for nothing yet."""
    spec = importlib.util.spec_from_file_location("fresh_hooks", hooks.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def use_all(module, x_ref, y_ref):
    def body(i, total):
        module.pipeline_loop(5)
        x = x_ref[pl.ds(i * 8, 8)].astype(jnp.float32)
        return module.multiply_add(x, x, total)

    module.launch_dependents()
    module.prefetch_l2(x_ref.at[32], 128)
    near = module.load_near(x_ref, (0,), (jnp.arange(8, dtype=jnp.int32),))
    words = module.load_words(x_ref, lambda along: (along,), 0, 8)
    vector, _ = module.load_vectors(x_ref, (0,), (2 * jnp.arange(8, dtype=jnp.int32),), 2)
    y_ref[pl.ds(0, 8)] = jax.lax.fori_loop(0, 100, body, (near + vector + words).astype(jnp.float32))


def names(caught):
    return {found for found in hooks.HOOKS for warning in caught if f"hook {found}: " in str(warning.message)}


def test_kernels_do_without_those_whose_internals_have_moved(monkeypatch, fresh_hooks):
    ordinary = builtins.__import__

    def moved(name, globals=None, *args):
        if globals and globals["__name__"] == "fresh_hooks" and name.startswith(("jax._src", "jax.extend", "jaxlib")):
            raise ImportError(f"No module named {name}")
        return ordinary(name, globals, *args)

    monkeypatch.setattr(builtins, "__import__", moved)
    fresh_hooks.__spec__.loader.exec_module(fresh_hooks)  # nothing internal is imported with the file
    with pytest.warns(RuntimeWarning, match=r"does not work with jax \d") as caught:
        text = lowered(functools.partial(use_all, fresh_hooks), dtype=jnp.int32)
    assert names(caught) == set(hooks.HOOKS)
    assert "triton" in text
    assert not any(trace in text for trace in ("tt.num_stages", "fma", "prefetch", "launch_dependents"))


@pytest.mark.parametrize(
    "internal, hook, trace",
    [
        ("jax._src.lib.triton.dialect.elementwise_inline_asm", "prefetch_l2", "cp.async.bulk.prefetch.L2"),
        (
            "jax._src.lib.triton.dialect.grid_dependency_launch_dependents",
            "launch_dependents",
            "dependency_launch_dependents",
        ),
        ("jax.extend.mlir.dialects.math.fma", "multiply_add", "fma"),
    ],
)
def test_kernels_do_without_one_that_fails_in_lowering(monkeypatch, internal, hook, trace):
    def changed(*args, **kwargs):
        raise TypeError("called in the way of an older jax")

    assert trace in lowered(functools.partial(use_all, hooks), dtype=jnp.int32)
    monkeypatch.setattr(internal, changed)
    with pytest.warns(RuntimeWarning, match=f"hook {hook}: .*an older jax"):
        assert trace not in lowered(functools.partial(use_all, hooks), dtype=jnp.int32)


def test_the_place_to_prefetch_is_an_element():
    with pytest.raises(TypeError, match=r"prefetch_l2: expected ref\.at\[i\], got"):
        hooks.prefetch_l2(jnp.zeros(8), 128)
