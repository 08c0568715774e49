"""How tests compile for the CPU."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def without_optimisations():
    """What a test compiles runs once or twice: LLVM's optimisations take longer than they save."""
    option = "jax_disable_most_optimizations"
    before = jax.config.read(option)
    jax.config.update(option, True)
    yield
    jax.config.update(option, before)
