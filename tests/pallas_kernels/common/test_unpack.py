"""What the kernels' assembly makes of stored bytes, by an emulation of its few instructions; a GPU runs the rest."""

import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental.pallas import triton as plt

import pallas_kernels as pk
from pallas_kernels.common import unpack

HALVES = {"bf16x2": ml_dtypes.bfloat16, "f16x2": np.float16}


def bits(value):
    return int(np.float32(value).view(np.uint32))


def permuted(a, b, selector):
    """PTX's prmt in its default mode: of eight bytes, those of a first, four by the nibbles of the selector."""
    both = (b << 32) | a
    return sum(((both >> (8 * (selector >> (4 * i) & 7))) & 0xFF) << (8 * i) for i in range(4))


def in_halves(kind, a, b, c):
    dtype = HALVES[kind]
    found = 0
    for half in (0, 16):
        x, y, z = (np.float64(np.uint16(v >> half & 0xFFFF).view(dtype)) for v in (a, b, c))
        found |= int(np.asarray(x * y + z).astype(dtype).view(np.uint16)) << half
    return found


def run(assembly, word):
    """The registers $0 to $3 after the assembly, with the input in the one that is not written first."""
    outputs = len(set(re.findall(r"\$\d", assembly))) - 1
    state = {f"${outputs}": word}

    def value(name):
        if name.startswith("0f"):
            return int(name[2:], 16)
        return int(name, 0) if name[0].isdigit() else state[name]

    for line in assembly.strip("{} ").split(";"):
        if not line.strip() or line.strip().startswith(".reg"):
            continue
        operation, rest = line.split(None, 1)
        target, *names = (x.strip() for x in rest.split(","))
        v = [value(name) for name in names]
        match operation.split("."):
            case ["mov", _]:
                state[target] = v[0]
            case ["and", _]:
                state[target] = v[0] & v[1]
            case ["or", _]:
                state[target] = v[0] | v[1]
            case ["xor", _]:
                state[target] = v[0] ^ v[1]
            case ["shr", _]:
                state[target] = v[0] >> v[1]
            case ["prmt", _]:
                state[target] = permuted(*v)
            case ["sub", "f32"]:
                state[target] = bits(np.uint32(v[0]).view(np.float32) - np.uint32(v[1]).view(np.float32))
            case ["cvt", "rn", "bf16x2", "f32"]:  # the first operand goes into the upper half
                high, low = (int(np.uint32(x).view(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)) for x in v)
                state[target] = high << 16 | low
            case ["fma", "rn", kind]:
                state[target] = in_halves(kind, *v)
            case _:
                raise AssertionError(f"not emulated: {operation}")
    return [state[f"${i}"] for i in range(outputs)]


@pytest.fixture
def emulated(monkeypatch):
    def inline(assembly, *, args, constraints, pack, result_shape_dtypes):
        (values,), (result,) = args, result_shape_dtypes
        assert pack == 4 and constraints.count("=r") == result.dtype.itemsize
        words = np.asarray(values).reshape(-1, 4).view(np.uint32)[:, 0]
        found = np.array([run(assembly, int(word)) for word in words], np.uint32)
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
