"""How tests compile for the CPU."""

import contextlib

import jax
import pytest


@contextlib.contextmanager
def unoptimised():
    """What a test compiles runs once or twice: LLVM's optimisations take longer than they save."""
    option = "jax_disable_most_optimizations"
    before = jax.config.read(option)
    jax.config.update(option, True)
    try:
        yield
    finally:
        jax.config.update(option, before)


@pytest.fixture(scope="package", autouse=True)
def without_optimisations():
    with unoptimised():
        yield
