"""Tables of the rotary embedding."""

import math

import numpy as np

from tokenspeed.models.config import Rope


def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians a position, float32 [H / 2], scaled as the kind says (`Rope`)."""
    inverse = (1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).astype(np.float32)
    if rope.kind == "linear":
        return inverse / np.float32(rope.factor)
    if rope.kind == "llama3":
        wavelength = 2 * math.pi / inverse
        low = rope.original_max_positions / rope.low_freq_factor
        high = rope.original_max_positions / rope.high_freq_factor
        blend = (rope.original_max_positions / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        blended = (1 - blend) * inverse / rope.factor + blend * inverse
        scaled = np.where(wavelength > low, inverse / rope.factor, np.where(wavelength < high, inverse, blended))
        return scaled.astype(np.float32)
    return inverse


def tables(rope: Rope, head_dim: int, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin), float32 [positions, H / 2] each, of angles multiplied in float32, as other engines do."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies(rope, head_dim)[None, :]
    angles = angles.astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
