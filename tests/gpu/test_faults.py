"""What has no place or no angle is NaN in that row alone, in compiled kernels too."""

import pytest

from tests.pallas_kernels import test_faults as faults


@pytest.mark.parametrize("name", faults.QKV)
def test_qkv(name, implementation):
    faults.test_qkv(name, implementation)


@pytest.mark.parametrize("name", faults.ATTENTION)
def test_attention(name, implementation):
    faults.test_attention(name, implementation)
