"""An emulation of the few instructions of PTX that the kernels' assembly has; a GPU runs the rest."""

import re

import ml_dtypes
import numpy as np

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


def summed(signed, a, b, c):
    """dp4a: c and the products of four bytes, in 32 bits."""
    for shift in (0, 8, 16, 24):
        x, y = ((v >> shift & 0xFF) - 256 * (one == "s32" and v >> shift + 7 & 1) for v, one in zip((a, b), signed))
        c += x * y
    return c & 0xFFFFFFFF


def of_three(table, *inputs):
    """lop3: a bit of the table for the bits of the inputs, the first of which counts most."""
    bits = (sum((v >> i & 1) << place for v, place in zip(inputs, (2, 1, 0))) for i in range(32))
    return sum((table >> bit & 1) << i for i, bit in enumerate(bits))


def in_floats(function, *words):
    with np.errstate(all="ignore"):
        return bits(function(*(np.uint32(word).view(np.float32) for word in words)))


def run(assembly, *words):
    """The registers $0, $1 and so on after the assembly, with its inputs in the last ones."""
    outputs = len(set(re.findall(r"\$\d", assembly))) - len(words)
    state = {f"${outputs + i}": word for i, word in enumerate(words)}

    def value(name):
        if name.startswith("0f"):
            return int(name[2:], 16)
        return int(name, 0) if name[0].isdigit() else state[name]

    for line in re.sub(r"^\{(.*)\}$", r"\1", assembly).split(";"):
        if not line.strip() or line.strip().startswith(".reg"):
            continue
        operation, rest = line.split(None, 1)
        if operation == "mov.b64":  # one of its sides is two words, the lower first
            names = re.findall(r"[$\w]+", rest)
            if rest.startswith("{"):
                *halves, whole = names
                state.update({name: state[whole] >> shift & 0xFFFFFFFF for name, shift in zip(halves, (0, 32))})
            else:
                whole, low, high = names
                state[whole] = state[high] << 32 | state[low]
            continue
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
            case ["lop3", _]:
                state[target] = of_three(v[3], *v[:3])
            case ["dp4a", *signed]:
                state[target] = summed(signed, *v)
            case ["sub", "f32"]:
                state[target] = in_floats(np.subtract, *v)
            case ["abs", "f32"]:
                state[target] = in_floats(np.abs, *v)
            case ["max", "NaN", "f32"]:
                state[target] = in_floats(np.maximum, *v)
            case ["rcp", "approx", "ftz", "f32"]:
                state[target] = in_floats(np.reciprocal, *v)
            case ["cvt", "rn", "bf16x2", "f32"]:  # the first operand goes into the upper half
                high, low = (int(np.uint32(x).view(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)) for x in v)
                state[target] = high << 16 | low
            case ["fma", "rn", kind]:
                state[target] = in_halves(kind, *v)
            case _:
                raise AssertionError(f"not emulated: {operation}")
    return [state[f"${i}"] for i in range(outputs)]
