"""Skips the folder where there is no NVIDIA GPU, unless its kernels are to be interpreted."""

import os
from pathlib import Path

import jax
import pytest

INTERPRET = os.environ.get("TOKENSPEED_GPU_TESTS_INTERPRET") == "1"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not INTERPRET and jax.default_backend() != "gpu":
                item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU; jax runs on {jax.default_backend()}"))


@pytest.fixture
def implementation() -> str:
    return "interpret" if INTERPRET else "triton"


@pytest.fixture
def compiled(implementation) -> None:
    """For what interpreted kernels have no notion of."""
    if implementation != "triton":
        pytest.skip("compiled kernels only")


@pytest.fixture
def draws(implementation) -> int:
    """How many draws an error is the mean of."""
    return 8 if implementation == "triton" else 2
