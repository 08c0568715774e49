"""The kernel of top-k and top-p keeps what the radix selection keeps, which is tested against a sort elsewhere."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.common.launch import guarded
from tests.pallas_kernels.lowering import for_gpu
from tests.pallas_kernels.selection.cases import LOGITS, arguments


# Each size compiles a kernel, which takes seconds: of one, all logits are tried.
@pytest.mark.slow
@pytest.mark.parametrize(
    "vocabulary, lanes", [(1, 16), (2, 16), (17, 32), (64, 64), (150, 64), (1000, 16), (3001, 256)]
)
def test_kernel_and_reference_agree(vocabulary, lanes):
    for seed, kind in enumerate(LOGITS):
        scaled, top_k, top_p = arguments(kind, 16, vocabulary, seed)
        with guarded():
            found = pk.top_k_top_p(scaled, top_k, top_p, implementation="interpret", lanes=lanes)
        expected = pk.top_k_top_p(scaled, top_k, top_p, implementation="xla")
        np.testing.assert_array_equal(found, expected, err_msg=f"{kind}, top_k {top_k}, top_p {top_p}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied", "broken"])
def test_every_k(kind):
    vocabulary = 40
    scaled = jnp.broadcast_to(arguments(kind, 1, vocabulary)[0], (vocabulary, vocabulary))
    top_k = jnp.arange(1, vocabulary + 1, dtype=jnp.int32)
    found = pk.top_k_top_p(scaled, top_k, None, implementation="interpret", lanes=16)
    np.testing.assert_array_equal(found, pk.top_k_top_p(scaled, top_k, None, implementation="xla"))
    np.testing.assert_array_equal(found.sum(axis=-1), top_k)


@pytest.mark.slow
def test_a_row_depends_neither_on_its_neighbours_nor_on_their_stages():
    scaled, _, _ = arguments("tied", 4, 150)
    top_k, top_p = jnp.array([150, 20, 150, 20], jnp.int32), jnp.array([1, 1, 0.8, 0.8], jnp.float32)
    run = lambda *how: pk.top_k_top_p(*how, implementation="interpret", lanes=64)
    alone = [
        run(scaled[:1], None, None),
        run(scaled[1:2], top_k[1:2], None),
        run(scaled[2:3], None, top_p[2:3]),
        run(scaled[3:], top_k[3:], top_p[3:]),
    ]
    assert alone[0].all()
    np.testing.assert_array_equal(run(scaled, top_k, top_p), np.concatenate(alone))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "flat", "few left"])
def test_a_large_vocabulary(kind):
    scaled, top_k, top_p = arguments(kind, 8, 128_256, seed=1)
    found = pk.top_k_top_p(scaled, top_k, top_p, implementation="interpret")
    np.testing.assert_array_equal(found, pk.top_k_top_p(scaled, top_k, top_p, implementation="xla"))


@pytest.mark.slow
def test_under_vmap():
    scaled, top_k, top_p = arguments("random", 4, 40)
    run = lambda *how: pk.top_k_top_p(*how, implementation="interpret", lanes=16)
    groups = [x.reshape(2, 2, *x.shape[1:]) for x in (scaled, top_k, top_p)]
    np.testing.assert_array_equal(jax.vmap(run)(*groups).reshape(4, 40), run(scaled, top_k, top_p))


@pytest.mark.parametrize("vocabulary", [32_000, 128_256])
def test_it_lowers_for_a_gpu(vocabulary):
    shapes = jax.ShapeDtypeStruct
    how = shapes((4, vocabulary), jnp.float32), shapes((4,), jnp.int32), shapes((4,), jnp.float32)
    with for_gpu("h200"):
        text = jax.jit(pk.top_k_top_p).trace(*how).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(scaled=jnp.ones(8)), "scaled: expected shape [B, V], got [8]"),
        (dict(scaled=jnp.ones((2, 8), jnp.bfloat16)), "scaled: expected dtype float32, got bfloat16"),
        (dict(top_k=jnp.ones(3, jnp.int32)), "top_k: expected shape [2], got [3]"),
        (dict(top_k=jnp.ones(2)), "top_k: expected dtype int32, got float32"),
        (dict(top_p=jnp.ones(2, jnp.int32)), "top_p: expected dtype float32, got int32"),
        (dict(top_p=jnp.array([0.5, jnp.nan])), "top_p: expected values from 0 to 1, got nan"),
        (dict(top_p=jnp.array([0.5, 1.5])), "top_p: expected values from 0 to 1, got 0.5 to 1.5"),
        (dict(top_p=jnp.array([-1.0, 0.5])), "top_p: expected values from 0 to 1, got -1.0 to 0.5"),
        (dict(lanes=48), "lanes: expected one of 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, got 48"),
        (dict(lanes=8), "lanes: expected a whole number from 16"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = dict(scaled=jnp.ones((2, 8)), top_k=None, top_p=None, implementation="xla") | change
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        pk.top_k_top_p(**arguments)
