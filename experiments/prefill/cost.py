"""The least that prefill must do: operations and bytes, by arithmetic."""

import jax.numpy as jnp

import pallas_kernels as pk
from experiments.bench.models import DTYPES
from experiments.prefill.options import Case
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.quantisation import HEAD

PEAK_TFLOPS = {"a100": 312.0, "h100": 989.4, "h200": 989.4, "b200": 2250.0}
"""Dense products of 16-bit operands by the datasheets, of the SXM cards."""


def flop(config: ModelConfig, case: Case) -> int:
    """Operations of all products and of attention, two for each multiply-add; of whole prompts the head of the last
    token too, which a chunk alone does without."""
    c = config
    of_layer = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim * c.d_model + 3 * c.d_model * c.d_ff
    pairs = sum(
        min(position + 1, layer.window or position + 1)
        for layer in c.layers
        for position in range(case.start, case.start + case.tokens)
    )
    head = c.vocab_size * c.d_model if case.start == 0 else 0
    return 2 * case.batch * (case.tokens * c.num_layers * of_layer + 2 * c.num_heads * c.head_dim * pairs + head)


def moved_bytes(config: ModelConfig, dtype: str, case: Case) -> int:
    """That must be read or written once: the weights that are used, the cache before the tokens, their own place in it.

    Args:
        dtype: as records have it.
    """
    c, itemsize = config, jnp.dtype(DTYPES[dtype]).itemsize
    weights = c.weights_bytes(itemsize) - (itemsize * c.vocab_size * c.d_model if c.has_own_head else 0)
    if case.start:
        weights -= _head_bytes(c, itemsize)
    rows = min(case.batch * case.tokens, c.vocab_size) * c.d_model
    seen = sum(min(case.start, case.start if layer.window is None else layer.window - 1) for layer in c.layers)
    cache = case.batch * 2 * c.num_kv_heads * c.head_dim * (seen + c.num_layers * case.tokens)
    return weights + itemsize * (rows + cache)


def _head_bytes(c: ModelConfig, itemsize: int) -> int:
    """Of the head's weight: the table, one of its own, or one that is quantised."""
    scheme = c.quantisation.scheme_of(HEAD) if c.quantisation and c.has_own_head else None
    return scheme.nbytes(c.vocab_size, c.d_model) if scheme else itemsize * c.vocab_size * c.d_model


def floor_ms(*, flop: int, moved: int, ceiling_gbps: float, device: str, dtype: str) -> float:
    """The time of the bytes at the read ceiling, or of the operations at the datasheet's peak where that is longer and
    the device (jax's name) has one for the dtype."""
    by_bytes = moved / ceiling_gbps / 1e6
    known = pk.find_device(device)
    peak = PEAK_TFLOPS.get(known.key) if known and dtype != "f32" else None
    return by_bytes if peak is None else max(by_bytes, flop / peak / 1e9)
