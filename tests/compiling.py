"""How tests compile for the CPU."""

import contextlib

import jax
import pytest


@contextlib.contextmanager
def _without_most_optimisations(without: bool):
    option = "jax_disable_most_optimizations"
    before = jax.config.read(option)
    jax.config.update(option, without)
    try:
        yield
    finally:
        jax.config.update(option, before)


def unoptimised():
    """What a test compiles runs once or twice: LLVM's optimisations take longer than they save."""
    return _without_most_optimisations(True)


def optimised():
    """Within it, programs that run hundreds of times, as those of an engine do, get the few that conftest.py leaves."""
    return _without_most_optimisations(False)


def compiling_alike() -> dict[str, str]:
    """The environment in which a process compiles as this one, and shares what either has compiled."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_num_cpu_devices")
    environment = {name.upper(): str(getattr(jax.config, name)) for name in names}
    return environment | dict(JAX_DISABLE_MOST_OPTIMIZATIONS=str(jax.config.read("jax_disable_most_optimizations")))


@pytest.fixture(scope="package", autouse=True)
def without_optimisations(compiled_once):
    """Nor is compiled again what another worker has compiled."""
    with unoptimised(), compiled_once():
        yield


@pytest.fixture
def programs_run_often():
    with optimised():
        yield
