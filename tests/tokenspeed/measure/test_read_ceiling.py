"""The kernels behind the read ceiling read what they say they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pallas_kernels.lowering import for_gpu
from tokenspeed.measure import read_ceiling


@pytest.mark.parametrize("pattern", read_ceiling.PATTERNS, ids=str)
def test_every_element_once_a_pass(pattern):
    programs, passes = 2 * pattern.each, 3
    whole = 2 * programs * pattern.block
    read, moved = read_ceiling.reader(pattern, whole + 17, passes, multiprocessors=2, interpret=True)
    assert moved == 2 * passes * whole
    # Powers of two of where a block lies: sums in float32 are exact, and a block read twice or not at all shows.
    blocks = np.repeat(2.0 ** np.arange(2 * programs), pattern.block)
    sums = read(jnp.asarray(np.append(blocks, np.full(17, np.nan)), jnp.bfloat16))
    assert sums.shape == (programs,)
    assert float(np.sum(np.asarray(sums, np.float64))) == passes * blocks.sum()
    own = np.arange(2 * programs).reshape((programs, 2) if pattern.runs else (2, programs))
    expected = (2.0**own).sum(1 if pattern.runs else 0) * pattern.block * passes
    np.testing.assert_array_equal(np.asarray(sums), expected)


@pytest.mark.parametrize("pattern", read_ceiling.PATTERNS, ids=str)
def test_the_ring_is_a_pipeline(pattern):
    read, _ = read_ceiling.reader(pattern, 2**28, 10, multiprocessors=132)
    with for_gpu("h200"):
        traced = jax.jit(read).trace(jax.ShapeDtypeStruct((2**28,), jnp.bfloat16))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert ("tt.num_stages" in text) == (pattern.num_stages > 1)
