"""The fused step against float32, in interpret mode: no worse than plain bfloat16, and the same bits every time."""

import numpy as np
import pytest

from tests.tokenspeed.engine import drift


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "trained"])
def test_no_further_from_the_truth_than_plain_bfloat16(name):
    drift.check_drift(name, "interpret", batch=2, length=24)


@pytest.mark.slow
def test_bits():
    drift.check_bits("interpret", length=3)


def test_a_drift_is_seen():
    """What the checks above look at grows with an error in the logits."""
    truth = np.random.default_rng(0).normal(size=(2, 3, 50))
    small, large = (drift.drift(truth + size * np.eye(50)[7], truth) for size in (0.01, 0.1))
    assert 0 < 5 * small.kl < large.kl and large.largest == pytest.approx(0.1)
