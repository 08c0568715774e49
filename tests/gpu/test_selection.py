"""Compiled, the kernel of top-k and top-p keeps what XLA's radix selection keeps, and so do whole draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.common.launch import guarded
from tests.pallas_kernels.selection.cases import LOGITS, arguments
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.sampling.sample import sample
from tokenspeed.sampling.state import make_state


def sizes(implementation):
    """(vocabulary, rows, whether with one of the two off, too): interpreted, small ones."""
    if implementation == "interpret":
        return ((150, 8, True),)
    return (128_256, 32, True), (32_000, 150, False), (4_097, 32, False), (150, 64, False), (1, 2, False)


@pytest.mark.parametrize("kind", LOGITS)
def test_it_keeps_what_xla_keeps(kind, implementation):
    for vocabulary, rows, each in sizes(implementation):
        scaled, top_k, top_p = arguments(kind, rows, vocabulary)
        for how in ((top_k, top_p), *(((top_k, None), (None, top_p)) if each else ())):
            with guarded():
                found = pk.top_k_top_p(scaled, *how, implementation=implementation)
            np.testing.assert_array_equal(found, pk.top_k_top_p(scaled, *how, implementation="xla"))


@pytest.mark.parametrize("lanes", [16, 512, 2048])
def test_it_does_not_depend_on_lanes(lanes, implementation):
    scaled, top_k, top_p = arguments("tied", 8, 150 if implementation == "interpret" else 10_000)
    found = pk.top_k_top_p(scaled, top_k, top_p, implementation=implementation, lanes=lanes)
    np.testing.assert_array_equal(found, pk.top_k_top_p(scaled, top_k, top_p, implementation="xla"))


def test_a_row_does_not_depend_on_the_others(implementation):
    scaled, top_k, top_p = arguments("random", 8, 150 if implementation == "interpret" else 128_256)
    run = functools.partial(pk.top_k_top_p, implementation=implementation)
    together = np.asarray(run(scaled, top_k, top_p))
    for row in range(len(together)):
        np.testing.assert_array_equal(
            run(scaled[row : row + 1], top_k[row : row + 1], top_p[row : row + 1])[0], together[row]
        )


def test_the_same_tokens_are_drawn(implementation):
    vocabulary, rows = 150 if implementation == "interpret" else 128_256, 16
    params = [
        SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m)
        for t, k, p, m in ((0.0, 0, 1.0, 0.0), (0.7, 40, 0.95, 0.05), (1.0, 0, 0.9, 0.0), (1.5, 100, 1.0, 0.02))
    ] * (rows // 4)
    state = make_state(params, [()] * rows, vocabulary, (), default_seeds=range(rows))
    draw = jax.jit(sample, static_argnames="implementation")
    for step in range(8 if implementation == "triton" else 1):
        logits = jax.random.normal(jax.random.key(step), (rows, vocabulary)) * 3
        found, expected = (
            draw(logits, state, jnp.full(rows, step, jnp.int32), implementation=name).tokens
            for name in (implementation, "xla")
        )
        np.testing.assert_array_equal(found, expected)
