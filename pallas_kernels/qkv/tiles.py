"""Tiles of qkv."""

import dataclasses

from pallas_kernels.common import tiles as stream_tiles
from pallas_kernels.common import tuned
from pallas_kernels.common.devices import Device
from pallas_kernels.common.tiles import (
    StreamShape,
    Tiles,
    Verdict,
    feasible,
    power_of_two_at_least,
    search_space,
    stand_ins,
)

__all__ = ["Tiles", "default", "feasible", "resolve", "search_space", "stand_ins", "whole_head_tiles"]


def default(shape: StreamShape, device: Device) -> Tiles:
    """The heuristic."""
    return stream_tiles.default(shape, device)


def whole_head_tiles(shape: StreamShape, head_dim: int, device: Device) -> Tiles:
    """For QK-norm, whose sum spans a head: one program a head, many warps to keep enough bytes in flight."""
    block_n = max(16, power_of_two_at_least(head_dim // 2))
    tiles = Tiles(block_n=block_n, block_k=128, num_warps=8, num_stages=4, mma=True)
    while not feasible(tiles, shape, device):
        tiles = dataclasses.replace(tiles, block_k=tiles.block_k // 2)
    return tiles


def resolve(tiles: Tiles | None, shape: StreamShape, whole_heads_of: int | None) -> Tiles:
    """The argument, else the tuned tile, else the heuristic; `whole_heads_of` is the head dimension under QK-norm."""
    if whole_heads_of is None:
        return tuned.resolve("qkv", tiles, shape, kind=Tiles, default=default, feasible=feasible, stand_ins=stand_ins)
    half = whole_heads_of // 2

    def holds_a_head(tiles, shape, device):
        if tiles.block_n < half:
            return Verdict(False, f"block_n: QK-norm needs a whole head, at least {half}, got {tiles.block_n}")
        return feasible(tiles, shape, device)

    if tiles is None:
        return whole_head_tiles(shape, whole_heads_of, tuned.current_device())
    return tuned.resolve("qkv", tiles, shape, kind=Tiles, default=default, feasible=holds_a_head, stand_ins=stand_ins)
