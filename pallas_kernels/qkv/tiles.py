"""Tiles of qkv: a program that stores what it sums holds RoPE's angles as well, and under QK-norm all of a head."""

import dataclasses

from jax.experimental import pallas as pl

from pallas_kernels.common import choose_tiles, many_rows, stream_space
from pallas_kernels.common.devices import Device
from pallas_kernels.common.stream_space import SPLIT_STREAM
from pallas_kernels.common.stream_tiles import StreamShape, Tiles, padded_rows
from pallas_kernels.common.stream_tiles import feasible as stream_feasible
from pallas_kernels.common.tile_space import MMA_ROWS, Verdict

MOST_SUMS = 32
"""Of a thread of tensor-core products, beside which its share of RoPE's angles finds registers while it streams."""


def feasible(tiles: Tiles, shape: StreamShape, device: Device) -> Verdict:
    """As `stream_tiles.feasible`."""
    verdict = stream_feasible(tiles, shape, device)
    sums = 2 * tiles.block_m * tiles.block_n / (32 * tiles.num_warps)
    if verdict and tiles.mma and tiles.splits == 1 and sums > MOST_SUMS:
        return Verdict(False, f"registers: {sums:.0f} sums a thread and RoPE's angles, {MOST_SUMS} fit")
    return verdict


def default(shape: StreamShape, device: Device) -> Tiles:
    """As `stream_space.default`."""
    if shape.rows > MMA_ROWS:
        return stream_space.within_groups(many_rows.default(shape, device, feasible), shape)
    return stream_space.default(shape, device)


QKV = dataclasses.replace(SPLIT_STREAM, feasible=feasible, default=default)


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
        return choose_tiles.resolve("qkv", tiles, shape, QKV)
    if tiles is None:
        return whole_head_tiles(shape, whole_heads_of, choose_tiles.current_device())
    half = whole_heads_of // 2

    def holds_a_head(tiles, shape, device):
        if tiles.splits == 1 and tiles.block_n < half:
            return Verdict(False, f"block_n: QK-norm needs a whole head, at least {half}, got {tiles.block_n}")
        return feasible(tiles, shape, device)

    return choose_tiles.resolve("qkv", tiles, shape, dataclasses.replace(QKV, feasible=holds_a_head))
