"""Tiles of qkv under QK-norm, whose sum spans a head, so that a program must hold all of one."""

import dataclasses

from jax.experimental import pallas as pl

from pallas_kernels.common import choose_tiles
from pallas_kernels.common.devices import Device
from pallas_kernels.common.stream_tiles import STREAM, StreamShape, Tiles, feasible
from pallas_kernels.common.tile_space import Verdict


def whole_head_tiles(shape: StreamShape, head_dim: int, device: Device) -> Tiles:
    """The heuristic: one program a head, many warps to keep enough bytes in flight."""
    block_n = max(16, pl.next_power_of_2(head_dim // 2))
    tiles = Tiles(block_n=block_n, block_k=128, num_warps=8, num_stages=4, mma=True)
    while not feasible(tiles, shape, device):
        tiles = dataclasses.replace(tiles, block_k=tiles.block_k // 2)
    return tiles


def resolve(tiles: Tiles | None, shape: StreamShape, whole_heads_of: int | None) -> Tiles:
    """The argument, else the tuned tile, else the heuristic's; `whole_heads_of` is the head dimension under QK-norm."""
    if whole_heads_of is None:
        return choose_tiles.resolve("qkv", tiles, shape, STREAM)
    if tiles is None:
        return whole_head_tiles(shape, whole_heads_of, choose_tiles.current_device())
    half = whole_heads_of // 2

    def holds_a_head(tiles, shape, device):
        if tiles.block_n < half:
            return Verdict(False, f"block_n: QK-norm needs a whole head, at least {half}, got {tiles.block_n}")
        return feasible(tiles, shape, device)

    return choose_tiles.resolve("qkv", tiles, shape, dataclasses.replace(STREAM, feasible=holds_a_head))
