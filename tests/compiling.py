"""How tests compile for the CPU."""

import contextlib

import jax


@contextlib.contextmanager
def without_optimisations():
    """What runs once in a test: LLVM's optimisations take it longer than they save."""
    option = "jax_disable_most_optimizations"
    before = jax.config.read(option)
    jax.config.update(option, True)
    try:
        yield
    finally:
        jax.config.update(option, before)
