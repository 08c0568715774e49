"""Random weights in bfloat16, written in shards: no more than one of them is in memory."""

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tokenspeed.models.config import ModelConfig
from tokenspeed.models.decoder import INIT_SCALE
from tokenspeed.weights.entries import Part, entries
from tokenspeed.weights.shards import INDEX, WEIGHTS

SHARD_BYTES = 1 << 30
CHUNK = 1 << 22
"""Numbers that are drawn at a time, in float32."""
ITEM = 2
"""Bytes of a number."""
Shard = list[tuple[int, Part]]
"""Tensors by their number in the model."""


def shards(config: ModelConfig, most_bytes: int = SHARD_BYTES) -> list[Shard]:
    """All tensors in their order, split into files; a tensor that is larger than `most_bytes` has one of its own."""
    found: list[Shard] = [[]]
    room = most_bytes
    for number, part in enumerate(part for entry in entries(config) for part in entry.parts):
        size = ITEM * math.prod(part.shape)
        if size > room and found[-1]:
            found.append([])
            room = most_bytes
        found[-1].append((number, part))
        room -= size
    return found


def draw(part: Part, number: int, seed: int) -> np.ndarray:
    """A tensor as at the start of a training: norms of one, biases of zero, everything else normal; bfloat16."""
    if part.name.endswith("norm.weight"):
        return np.ones(part.shape, ml_dtypes.bfloat16)
    found = np.zeros(math.prod(part.shape), ml_dtypes.bfloat16)
    if not part.name.endswith(".bias"):
        rng = np.random.default_rng((seed, number))
        for begin in range(0, found.size, CHUNK):
            size = min(CHUNK, found.size - begin)
            found[begin : begin + size] = np.float32(INIT_SCALE) * rng.standard_normal(size, np.float32)
    return found.reshape(part.shape)


def write(
    folder: Path, config: ModelConfig, seed: int, most_bytes: int = SHARD_BYTES, told: Callable[[str], None] = print
) -> None:
    """model.safetensors, or several such files and their index; `told` gets a line about each."""
    planned = shards(config, most_bytes)
    places: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        for i, shard in enumerate(planned, 1):
            name = WEIGHTS if len(planned) == 1 else f"model-{i:05}-of-{len(planned):05}.safetensors"
            drawn = pool.map(lambda one: draw(one[1], one[0], seed), shard)
            tensors = {part.name: tensor for (_, part), tensor in zip(shard, drawn)}
            save_file(tensors, folder / name, metadata=dict(format="pt"))
            places |= {part.name: name for _, part in shard}
            told(f"{name}: {sum(ITEM * math.prod(part.shape) for _, part in shard) / 1e9:.2f} GB")
    if len(planned) > 1:
        index = dict(metadata=dict(total_size=ITEM * config.num_parameters), weight_map=places)
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
