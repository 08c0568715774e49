"""Tiles of the kernels that stream a weight past 1 to 16 activation rows: which are worth trying, and the heuristic."""

import dataclasses

from jax.experimental import pallas as pl

from pallas_kernels.common.devices import Device
from pallas_kernels.common.quantised import RUN
from pallas_kernels.common.stream_tiles import RESERVED_BYTES, StreamShape, Tiles, shared_memory_bytes

VECTOR_ROWS = 2
"""Up to how many rows a multiply-and-add for each weight and row hides behind memory."""
MANY_PROGRAMS = 256
"""About two for each multiprocessor of any GPU."""


def search_space(shape: StreamShape) -> list[Tiles]:
    """The tiles worth trying for `shape` on any device, before `feasible`.

    Vectors for few rows (of integers: see `_integer_space`): with 16 to 64 weights a thread loaded in one go, or 16 to
    32 in each block of a ring. Tensor cores from 2 rows on, and some of them for one row (few with a norm, which they
    need a launch for); the widest where enough programs are left.
    """
    spaces, widest = [], pl.next_power_of_2(shape.inputs)
    if shape.in_integers:
        spaces += _integer_space(shape, widest) if shape.rows <= 4 else []
        if shape.rows == 1:
            return spaces
    elif shape.rows <= 4:
        spaces += [
            Tiles(block_n=block_n, block_k=block_k, num_warps=num_warps, num_stages=num_stages)
            for block_n in (1, 2, 4, 8, 16)
            for block_k in (256, 512, 1024, 2048)
            for num_warps in (2, 4, 8)
            for num_stages in (1, 3, 4, 6)
            if 16 <= shape.groups * block_n * block_k // (32 * num_warps) <= (64 if num_stages == 1 else 32)
            and block_k <= widest
            and (num_stages == 1 or block_k <= 1024)
        ]
    few = shape.rows == 1
    wide = (16, 32, 64, 128) if shape.outputs >= 128 * MANY_PROGRAMS else (16, 32, 64)
    if few:
        wide = (16,) if shape.norm else (16, 32, 64)
    if shape.is_quantised:
        return spaces + _unpacking_space(shape)
    spaces += [
        Tiles(block_n=block_n, block_k=block_k, num_warps=num_warps, num_stages=num_stages, mma=True)
        for block_n in wide
        for block_k in ((128, 256) if few else (64, 128, 256, 512))
        for num_warps in (sorted({4 // shape.groups, 4}) if few else (2, 4, 8))
        for num_stages in ((3, 4) if few else (3, 4, 6))
    ]
    return spaces


def _integer_space(shape: StreamShape, widest: int) -> list[Tiles]:
    """Vectors of integers: many outputs share what rounding x takes, and a thread has 64 to 256 bytes of them."""
    return [
        Tiles(block_n=outputs // shape.groups, block_k=block_k, num_warps=num_warps, num_stages=num_stages)
        for outputs in (4, 8, 16, 32, 64)
        for block_k in (256, 512, 1024, 2048)
        for num_warps in (1, 2, 4, 8)
        for num_stages in (1, 2, 3, 4)
        if 64 <= outputs * block_k // (32 * num_warps) <= 256 and block_k <= widest
    ]


def _integer_default(shape: StreamShape, device: Device) -> Tiles:
    """As many outputs as leave a few programs for each multiprocessor, 128 or 64 bytes of them a thread at a time.

    A byte of int4 is two weights, so half as many bytes are as much to do, and more programs keep a multiprocessor
    busy.
    """
    programs, bytes_each, num_stages = (4, 64, 3) if shape.parts == 2 else (2, 128, 4)
    outputs = 32
    while outputs > 8 and round(shape.outputs * shape.groups / (outputs * device.num_sms)) < programs:
        outputs //= 2
    block_k = min((4 if outputs > 8 else 8) * bytes_each, pl.next_power_of_2(shape.stored_inputs))
    num_warps = max(1, outputs * block_k // (bytes_each * 32))
    return Tiles(block_n=outputs // shape.groups, block_k=block_k, num_warps=num_warps, num_stages=num_stages)


def default_of_runs(shape: StreamShape) -> Tiles:
    """The heuristic for integer weights whose result is to come in whole runs of fixed point, as their activations
    mostly do: 128 bytes a thread, or 64 where there would be fewer than four steps."""
    inputs = pl.next_power_of_2(shape.stored_inputs)
    block_k = min(inputs, max(512 // shape.groups, min(1024 // shape.groups, inputs // 4)))
    num_warps = max(1, min(4, shape.groups * RUN * block_k // (64 * 32)))
    return Tiles(block_n=RUN, block_k=block_k, num_warps=num_warps, num_stages=5 - shape.groups)


def _unpacking_space(shape: StreamShape) -> list[Tiles]:
    """Tensor cores for quantised weights, a group's inputs at a time; one warp with many outputs moves x the least."""
    widest = min(256, shape.scale_group or 256)
    return [
        Tiles(block_n=block_n, block_k=block_k, num_warps=num_warps, num_stages=num_stages, mma=True)
        for block_n in (16, 32, 64, 128)
        for block_k in (32, 64, 128, 256)
        for num_warps in (1, 2, 4)
        for num_stages in (3, 4, 6)
        if block_k <= widest and 32 <= shape.groups * block_n * block_k // (32 * num_warps) <= 512
    ]


FEW_BYTES, MANY_BYTES = 128 << 10, 1 << 20
"""Of weights for each multiprocessor: what its registers can hold at once, and where programs that take more at a time
pay."""
STAGE_BYTES = 32 << 10
"""Of weights in one stage of a tensor-core ring, at most: a barrier for each costs little then."""


def _tensor_core_default(shape: StreamShape, device: Device) -> Tiles:
    """Wide programs, since each reads all of x again: 16 outputs cost L2 as much of x as of weights, 64 a quarter.

    But about two programs for each multiprocessor, with room there for both: one fills its ring while another drains.
    """
    block_n = 64
    while block_n > 16 and round(shape.outputs / (block_n * device.num_sms)) < 2:
        block_n //= 2
    at_once = 2 if shape.outputs > block_n * device.num_sms else 1
    most = STAGE_BYTES // (shape.groups * block_n * shape.weight_itemsize)
    block_k = max(16, min(most, pl.next_power_of_2(shape.inputs)))
    # A tensor-core instruction is 8 columns wide: warps beyond that only read the same from shared memory again. With
    # block_n=16 and 4 warps 8 times the weights' bytes pass through it, all that it can at memory's rate. Pairs
    # of outputs take two products of the same x: two warps, and three stages for 128 outputs a stage, were the fastest.
    num_warps = 4 if shape.itemsize == 4 else min(4 // shape.groups, block_n // 8)
    num_stages = 4 if shape.groups * block_n <= 64 else 3
    tiles = Tiles(block_n=block_n, block_k=block_k, num_warps=num_warps, num_stages=num_stages, mma=True)

    def have_room(tiles):
        need, limit = shared_memory_bytes(tiles, shape, device), device.shared_memory_bytes
        return at_once * (need + RESERVED_BYTES) <= limit + RESERVED_BYTES

    while not have_room(tiles):
        tiles = dataclasses.replace(tiles, block_k=tiles.block_k // 2)
    return tiles


def default(shape: StreamShape, device: Device) -> Tiles:
    """The heuristic.

    Weights that the register files can hold at once are loaded in one go, by many small programs; longer streams go
    through shared memory, a few blocks ahead; beyond `VECTOR_ROWS`, tensor cores.
    """
    if shape.rows <= VECTOR_ROWS and shape.in_integers:
        return _integer_default(shape, device)
    if shape.rows > VECTOR_ROWS or shape.weight_dtype == "int4":  # as floats four bits take too many instructions
        return _tensor_core_default(shape, device)
    most, share = pl.next_power_of_2(shape.inputs), shape.weight_bytes / device.num_sms
    if share < FEW_BYTES:
        return Tiles(block_n=2, block_k=min(2048 // shape.groups, most), num_warps=4)
    if share > MANY_BYTES:
        return Tiles(block_n=8 // shape.groups, block_k=min(512, most), num_warps=4, num_stages=4)
    if shape.groups == 2 and shape.inputs > 2048:
        return Tiles(block_n=8, block_k=256, num_warps=4, num_stages=4)
    return Tiles(block_n=4, block_k=min(256, most), num_warps=2, num_stages=4)
