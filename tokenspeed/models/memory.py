"""What a model takes on a device, before anything is loaded, and what a token of decode must read."""

import dataclasses

import jax.numpy as jnp

from tokenspeed.models.config import ModelConfig
from tokenspeed.models.kv_dtypes import KVDtypes

DEVICE_GB = {"a100": 80, "h100": 80, "h200": 141, "b200": 180}
"""Of the usual variants."""
RESERVED = 0.1
"""Of a device's memory, for XLA, the driver and fragmentation."""
PREFILL_TOKENS = 8192
"""Of all sequences together, at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on the device for a number of sequences of a context.

    Attributes:
        weights_bytes, kv_bytes: of the model and of all caches.
        workspace_bytes: an upper bound of what a step of prefill or decode needs besides.
        available_bytes: of the device, less what is reserved; None where it is not known.
    """

    weights_bytes: int
    kv_bytes: int
    workspace_bytes: int
    available_bytes: int | None

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.workspace_bytes

    @property
    def fits(self) -> bool | None:
        return None if self.available_bytes is None else self.total_bytes <= self.available_bytes


def plan(
    config: ModelConfig, *, dtype: str, context: int, batch: int, device: str | None = None, kv: KVDtypes | None = None
) -> MemoryPlan:
    """What serving a model takes of a device's memory.

    Args:
        dtype: of weights and activations. context: positions of a sequence. batch: sequences at a time.
        device: a key of DEVICE_GB, or None where it does not matter what there is.
        kv: what keys and values are stored in; None for `dtype`.

    Raises:
        ValueError: the device is unknown, or context or batch is out of range.
    """
    if device is not None and device not in DEVICE_GB:
        raise ValueError(f"device: expected one of {', '.join(DEVICE_GB)}, got {device!r}")
    for name, value, most in (("context", context, config.max_positions), ("batch", batch, 1 << 20)):
        if not 1 <= value <= most:
            raise ValueError(f"{name}: expected 1 to {most}, got {value}")
    itemsize = jnp.dtype(dtype).itemsize
    rows = min(batch * context, max(batch, PREFILL_TOKENS))
    # The widest activations of a layer, in float32 once, and the logits of every sequence with two copies to sample.
    widest = max(2 * config.d_ff, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim)
    workspace = rows * (4 * widest + 2 * itemsize * config.d_model) + 3 * batch * config.vocab_size * 4
    if batch * context > rows:  # a later chunk of a prompt gathers the keys and values before it, of a layer at a time
        workspace += batch * context * 2 * config.num_kv_heads * config.head_dim * itemsize
    return MemoryPlan(
        weights_bytes=config.weights_bytes(itemsize),
        kv_bytes=batch * context * config.kv_bytes_per_token(*(kv or KVDtypes.of(dtype)).itemsizes),
        workspace_bytes=workspace,
        available_bytes=None if device is None else int(DEVICE_GB[device] * 1e9 * (1 - RESERVED)),
    )


def decode_bytes(
    config: ModelConfig, *, dtype: str, context: float, batch: int = 1, kv: KVDtypes | None = None
) -> float:
    """Bytes that a decode step of `batch` sequences must read: every weight once, and the keys and values so far.

    Args:
        dtype: of weights. context: positions of each sequence that a step sees.
        kv: what keys and values are stored in; None for `dtype`.

    Of an embedding table that is not also the head, a step reads one row a sequence. With a sliding window only the
    window counts.
    """
    itemsize = jnp.dtype(dtype).itemsize
    table = (config.vocab_size - batch) * config.d_model if config.has_own_head else 0
    position = config.num_kv_heads * config.head_dim * sum((kv or KVDtypes.of(dtype)).itemsizes)
    seen = sum(min(context, layer.window or context) for layer in config.layers)
    return config.weights_bytes(itemsize) - table * itemsize + batch * seen * position
