"""The fused step on the GPU against float32: no worse than plain bfloat16, and the same bits every time."""

import pytest

from tests.tokenspeed.engine import drift


@pytest.mark.parametrize("name", ["random", "trained"])
@pytest.mark.parametrize("batch", [1, 2, 4, 16])
def test_no_further_from_the_truth_than_plain_bfloat16(name, batch, implementation):
    drift.check_drift(name, implementation, batch=batch, length=64)


def test_bits(implementation):
    drift.check_bits(implementation, length=64)
