"""Compilations: counted while somebody wants to know, and none of what is there."""

import jax
import jax.numpy as jnp

from tokenspeed.server.compilations import Compilations


def test_programs_that_are_made_are_counted():
    found, one, two = Compilations(), jax.jit(lambda x: x * 3), jax.jit(lambda x: x * 5)
    x = jnp.ones(3)
    one(x)
    found.start()
    one(x)
    assert found.count == 0
    two(x)
    assert found.count == 1
    found.stop()
    found.stop()
    jax.jit(lambda x: x * 7)(x)
    assert found.count == 1
