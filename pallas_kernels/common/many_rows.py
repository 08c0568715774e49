"""Tiles of the kernels that stream a weight past more than 16 activation rows.

There are some thousands; they are tried in the order of an estimate, the first of which is the heuristic's. With so
many rows a program reads as much of the activations, from L2, as of its weights: few outputs a program cost that, many
leave multiprocessors idle, and splitting the reduction axis is the way between.
"""

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Any

from jax.experimental import pallas as pl

from pallas_kernels.common.devices import DEVICES, Device
from pallas_kernels.common.stream_tiles import (
    RESERVED_BYTES,
    StreamShape,
    Tiles,
    feasible,
    in_warp_groups,
    padded_rows,
    row_blocks_of,
    shared_memory_bytes,
)
from pallas_kernels.common.tile_space import MMA_ROWS, WARP_GROUP_ROWS

MEASURED_ON = DEVICES["h200"]
"""The GPU whose rates the estimate has, fitted to sweeps there; the order is hardly another elsewhere."""
MEMORY_RATE, L2_RATE, SHARE_RATE, PRODUCT_RATE = 3.6e6, 13e6, 75e3, 800e6
"""Bytes a microsecond of memory, of L2 and into one multiprocessor; operations a microsecond of the tensor cores."""
LATENCY_US = 1.1
"""From asking for a block to having it, with memory busy: a stage ahead hides as much of it."""
STEP_US = 1e-3
"""Of a sum's next addition, for each element of the reduction axis."""
SINGLE_WARPS = 4
"""How much longer the products of single warps take, whose operands pass through registers."""
COMBINE_US, PARTIAL_RATE = 0.7, 1.5e6
"""Of the launch that adds partial sums up: what it takes at least, and bytes a microsecond, written and read again."""
SHARPNESS = 4
"""Of the norm in which the parts of the estimate make a whole: near the largest alone, but two alike take longer."""
MOST_SUMS, MOST_REGISTERS = 64, 160
"""Of a thread: its sums, and those with the operands of a single warp's products."""
ALIKE = 2
"""Tiles that differ only in their stages, warps and block_k, that come before others take their turn."""


def estimate_us(tiles: Tiles, shape: StreamShape, device: Device = MEASURED_ON) -> float:
    """About how long a launch takes, from what it moves, computes and waits for."""
    row_blocks = row_blocks_of(shape, tiles)
    programs = pl.cdiv(shape.outputs, tiles.block_n) * row_blocks * tiles.splits
    fit = (device.shared_memory_bytes + RESERVED_BYTES) // (shared_memory_bytes(tiles, shape, device) + RESERVED_BYTES)
    at_once = min(max(1, fit), pl.cdiv(programs, device.num_sms))
    waves = pl.cdiv(programs, device.num_sms * at_once)
    busy = min(1.0, programs / device.num_sms)
    inputs = shape.inputs // tiles.splits
    moved = shape.weight_bytes * row_blocks + programs * tiles.block_m * inputs * shape.itemsize
    operations = 2 * row_blocks * tiles.block_m * shape.outputs * shape.groups * shape.inputs
    slow = 1 if in_warp_groups(tiles, shape, device) else SINGLE_WARPS
    parts = (
        shape.weight_bytes / MEMORY_RATE,
        moved / min(L2_RATE, busy * device.num_sms * SHARE_RATE),
        operations / (PRODUCT_RATE * busy) * slow,
        waves * inputs / tiles.block_k * LATENCY_US / (tiles.num_stages - 1),
        waves * inputs * STEP_US * slow,
    )
    whole = sum(part**SHARPNESS for part in parts) ** (1 / SHARPNESS)
    if tiles.splits == 1:
        return whole
    partial = 4 * tiles.splits * shape.rows * shape.outputs * shape.groups
    return whole + COMBINE_US + partial / PARTIAL_RATE


def _is_tried(tiles: Tiles, shape: StreamShape, device: Device) -> bool:
    """Whether the parts fit each other; what spills registers more often than not is left out."""
    threads = 32 * tiles.num_warps
    outputs = shape.groups * tiles.block_n
    if tiles.num_warps == 8 and tiles.block_m * outputs < 64 * 128:
        return False  # warps without work
    if tiles.block_m * outputs > (MOST_SUMS // 2 if tiles.swap_ab and tiles.num_warps == 4 else MOST_SUMS) * threads:
        return False
    if tiles.swap_ab and (tiles.block_n < WARP_GROUP_ROWS or tiles.block_m > tiles.block_n):
        return False  # then the rows are the better first operand
    if shape.inputs % (tiles.splits * tiles.block_k) and (tiles.splits > 1 or tiles.block_k > shape.inputs):
        return False
    if in_warp_groups(tiles, shape, device):
        return tiles.block_k <= 128
    # The products of single warps: each warp has the operands of its own part in registers.
    first, second = (outputs, tiles.block_m) if tiles.swap_ab else (tiles.block_m, outputs)
    along = min(tiles.num_warps, max(1, first // MMA_ROWS))
    operands = (first // along + second // (tiles.num_warps // along)) * tiles.block_k * shape.itemsize / 4 / 32
    return operands + tiles.block_m * outputs / threads <= MOST_REGISTERS


@functools.lru_cache(maxsize=64)
def _ordered(shape: StreamShape, device: Device = MEASURED_ON) -> tuple[Tiles, ...]:
    most, narrow = padded_rows(shape.rows), shape.itemsize == 2
    found = [
        Tiles(
            block_m=block_m, block_n=block_n, block_k=block_k, num_warps=num_warps, num_stages=num_stages,
            mma=True, swap_ab=swap_ab, splits=splits,
        )
        for block_m, block_n, block_k, num_warps, num_stages, swap_ab, splits in itertools.product(
            sorted({min(most, 128), min(most, 64)}, reverse=True) if narrow else (32,),
            (32, 64, 128) if narrow else (32,),
            (64, 128, 256) if narrow else (16,),  # a product in float32 has its operands in registers
            (4, 8),
            (3, 4, 6),
            (False, True) if narrow else (False,),
            (1, 2, 4, 8),
        )
    ]  # fmt: skip
    found = [tiles for tiles in found if _is_tried(tiles, shape, device) and feasible(tiles, shape, device)]
    found.sort(key=lambda tiles: estimate_us(tiles, shape, device))
    first, later, seen = [], [], collections.Counter()
    for tiles in found:
        kind = tiles.block_m, tiles.block_n, tiles.splits, tiles.swap_ab
        seen[kind] += 1
        (first if seen[kind] <= ALIKE else later).append(tiles)
    return tuple(first + later)


def search_space(shape: StreamShape) -> list[Tiles]:
    """The tiles worth trying for `shape` on any device, before `feasible`, in the order of the estimate."""
    return list(_ordered(shape))


def default(shape: StreamShape, device: Device, runs: Callable[..., Any] = feasible) -> Tiles:
    """The first by the estimate that the device can run, as `runs` says."""
    return next((tiles for tiles in _ordered(shape, device) if runs(tiles, shape, device)), _least(shape))


def _least(shape: StreamShape) -> Tiles:
    """Where the reduction axis is shorter than any block."""
    block_k = max(16, min(32, pl.next_power_of_2(shape.inputs)))
    return Tiles(block_m=16, block_n=16, block_k=block_k, num_warps=4, num_stages=3, mma=True)
