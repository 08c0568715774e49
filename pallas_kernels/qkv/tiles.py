"""Tiles of qkv under QK-norm, whose sum spans a head, so that a program must hold all of one or leave partial sums."""

import dataclasses

from jax.experimental import pallas as pl

from pallas_kernels.common import choose_tiles
from pallas_kernels.common.devices import Device
from pallas_kernels.common.stream_space import SPLIT_STREAM
from pallas_kernels.common.stream_tiles import StreamShape, Tiles, feasible, padded_rows
from pallas_kernels.common.tile_space import Verdict


def whole_head_tiles(shape: StreamShape, head_dim: int, device: Device) -> Tiles:
    """The heuristic: one program a head and up to 64 rows, many warps to keep enough bytes in flight."""
    block_n, block_m = max(16, pl.next_power_of_2(head_dim // 2)), min(64, padded_rows(shape.rows))
    tiles = Tiles(block_m=block_m, block_n=block_n, block_k=128, num_warps=8, num_stages=4, mma=True)
    while not feasible(tiles, shape, device):
        tiles = dataclasses.replace(tiles, block_k=tiles.block_k // 2)
    return tiles


def resolve(tiles: Tiles | None, shape: StreamShape, whole_heads_of: int | None) -> Tiles:
    """The argument, else the tuned tile, else the heuristic's; `whole_heads_of` is the head dimension under QK-norm."""
    if whole_heads_of is None:
        return choose_tiles.resolve("qkv", tiles, shape, SPLIT_STREAM)
    if tiles is None:
        return whole_head_tiles(shape, whole_heads_of, choose_tiles.current_device())
    half = whole_heads_of // 2

    def holds_a_head(tiles, shape, device):
        if tiles.splits == 1 and tiles.block_n < half:
            return Verdict(False, f"block_n: QK-norm needs a whole head, at least {half}, got {tiles.block_n}")
        return feasible(tiles, shape, device)

    return choose_tiles.resolve("qkv", tiles, shape, dataclasses.replace(SPLIT_STREAM, feasible=holds_a_head))
