"""Marks of parameters."""

from typing import Any

import pytest


def slow(*values: Any):
    """Values for `pytest.mark.parametrize`, left out of `make quick`."""
    return pytest.param(*values, marks=pytest.mark.slow)
