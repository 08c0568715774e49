"""Quantised projections as compressed-tensors stores them: the inverse of `tokenspeed.weights.quantised.decoded`."""

import numpy as np

from tokenspeed.models.quantisation import PACKED, Scheme

SHAPE = "weight_shape"
"""An int64 [2] beside packed words, since these do not tell how many inputs the last of them holds."""


def encoded(scheme: Scheme, values: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None) -> dict[str, np.ndarray]:
    """The tensors of a projection by the ends of their names.

    Args:
        scheme: its layout is PACKED, of int4 and int8, or FLOATS, of fp8.
        values: int8 [O, I], int4 as -8 to 7, or float8_e4m3fn. scales: [O, groups]. zeros: int8 [O, groups] or None.
    """
    if scheme.layout != PACKED:
        return {"weight": values, "weight_scale": scales}
    bits = 4 if scheme.format == "int4" else 8
    found = {
        "weight_packed": _words(values, bits),
        "weight_scale": scales,
        SHAPE: np.array(values.shape, np.int64),
    }
    if zeros is not None:
        found["weight_zero_point"] = np.ascontiguousarray(_words(zeros.T, bits).T)
    return found


def _words(values: np.ndarray, bits: int) -> np.ndarray:
    """int8 [N, n] as int32 [N, ceil(n / per word)]: half of the range added, the first in the lowest bits."""
    per_word = 32 // bits
    unsigned = (values.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    unsigned = np.pad(unsigned, [(0, 0), (0, -values.shape[1] % per_word)])
    if bits == 4:
        unsigned = unsigned[:, ::2] | (unsigned[:, 1::2] << 4)
    return np.ascontiguousarray(unsigned).view("<i4")
