"""Rows of logits that are hard to select from, and what to keep of them, for a CPU and a GPU."""

import jax.numpy as jnp
import numpy as np


def normal(rng, *shape, scale=2.0):
    return rng.normal(size=shape) * scale


def broken(rng, *shape):
    """NaN of either sign, and infinity of either."""
    logits = np.round(normal(rng, *shape))
    return np.select([logits == v for v in (2, -2, 3, -3)], [np.nan, -np.nan, np.inf, -np.inf], logits)


LOGITS = {
    "random": normal,
    "peaked": lambda *shape: normal(*shape, scale=30.0),
    "flat": lambda *shape: normal(*shape, scale=1e-2),
    "tied": lambda *shape: np.round(normal(*shape)),
    "equal": lambda *shape: np.where(normal(*shape) > 0, 0.0, -0.0),
    "two values": lambda *shape: np.where(normal(*shape) > 0, -500.0, -3.0),
    "few left": lambda *shape: np.where(normal(*shape) > 4, normal(*shape), -np.inf),
    "all masked": lambda _, *shape: np.full(shape, -np.inf),
    "broken": broken,
    "in order": lambda _, *shape: np.broadcast_to(np.linspace(8, -8, shape[-1]), shape),
}


def arguments(kind: str, rows: int, vocabulary: int, seed: int = 0):
    """(scaled [B, V], top_k, top_p): drawn ones, off or at an end in some rows."""
    rng = np.random.default_rng(seed)
    scaled = LOGITS[kind](rng, rows, vocabulary).astype(np.float32)
    top_k = np.minimum(rng.choice([1, 2, 20, 50, vocabulary // 2 + 1, vocabulary, vocabulary], rows), vocabulary)
    top_p = rng.choice([0.0, 1e-30, 1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 1 - 2.0**-24, 1.0, 1.0], rows)
    return jnp.asarray(scaled), jnp.asarray(top_k, jnp.int32), jnp.asarray(top_p, jnp.float32)
