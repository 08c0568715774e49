"""What the kernels' assembly makes of stored bytes, by an emulation of its few instructions."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental.pallas import triton as plt

import pallas_kernels as pk
from pallas_kernels.common import unpack
from tests.pallas_kernels.common import ptx


@pytest.fixture
def emulated(monkeypatch):
    def inline(assembly, *, args, constraints, pack, result_shape_dtypes):
        (values,), (result,) = args, result_shape_dtypes
        assert pack == 4 and constraints.count("=r") == result.dtype.itemsize
        words = np.asarray(values).reshape(-1, 4).view(np.uint32)[:, 0]
        found = np.array([ptx.run(assembly, int(word)) for word in words], np.uint32)
        return [jnp.asarray(found.reshape(-1).view(result.dtype).reshape(result.shape))]

    monkeypatch.setattr(plt, "elementwise_inline_asm", inline)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("format, part", [("int4", 0), ("int4", 1), ("int8", 0), ("fp8", 0)])
def test_every_byte(emulated, format, part, dtype):
    """The same as without assembly, and exact."""
    stored = np.arange(256, dtype=np.uint8)
    if format == "fp8":
        stored = stored[(stored & 0x7F) != 0x7F]  # NaN, which a checkpoint may not have
        stored = np.concatenate([stored, stored[:2]])
    values = jnp.asarray(stored.view(pk.FORMATS[format])).reshape(2, -1)
    found, plain = (unpack.unpack(values, format, part, dtype, interpret=x) for x in (False, True))
    assert found.dtype == plain.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(plain, np.float32))
    if format == "fp8":
        expected = stored.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    elif format == "int8":
        expected = stored.view(np.int8).astype(np.float32)
    else:
        expected = (stored >> (4 * part) & 15).astype(np.float32) - 8
    np.testing.assert_array_equal(np.asarray(plain, np.float32).reshape(-1), expected)
