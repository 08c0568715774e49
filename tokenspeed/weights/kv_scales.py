"""The scales of a KV cache in 8 bits that a checkpoint has: a number for a layer, or one for each of its kv heads."""

import math

import jax.numpy as jnp
import numpy as np

from tokenspeed.messages import listed
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.kv_scales import KVScales
from tokenspeed.weights.entries import DTYPES
from tokenspeed.weights.shards import CheckpointError, Stored


def names(config: ModelConfig) -> list[str]:
    """Of the tensors: of keys by layer, then of values; none where the config speaks of no such scales."""
    if config.quantisation is None or config.quantisation.kv is None:
        return []
    return [f"model.layers.{i}.self_attn.{name}_scale" for name in "kv" for i in range(config.num_layers)]


def read(config: ModelConfig, tensors: dict[str, Stored]) -> KVScales | None:
    """The scales; None where the checkpoint has no such tensor.

    Raises:
        CheckpointError: some are missing, of another shape or dtype, or no positive numbers.
    """
    wanted = names(config)
    if not any(name in tensors for name in wanted):
        return None
    if missing := [name for name in wanted if name not in tensors]:
        raise CheckpointError(f"tensors missing: {listed(missing)}")
    heads = config.num_kv_heads
    found = []
    for name in wanted:
        tensor = tensors[name]
        if math.prod(tensor.shape) not in (1, heads) or tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{name}: expected a floating-point number, or {heads}, of each kv head, got {tensor.dtype} "
                f"{list(tensor.shape)}"
            )
        scale = np.broadcast_to(tensor.read().astype(np.float32).reshape(-1), heads)
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise CheckpointError(f"{name}: expected positive numbers, got {scale.min()}")
        found.append(scale)
    k, v = jnp.asarray(np.stack(found).reshape(2, config.num_layers, heads))
    return KVScales(k=k, v=v)
