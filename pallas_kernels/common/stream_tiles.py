"""Tiles of the kernels that stream a weight, the search space of them, and which a device can run."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.common import checks
from pallas_kernels.common.devices import Device
from pallas_kernels.common.tile_space import MMA_ROWS, TileSpace, Verdict, launch_verdict, resource_verdict

MAX_BLOCK_ELEMENTS = 2**20
"""The backend's limit on the elements of one block."""
RESERVED_BYTES = 1 << 10
"""Of shared memory, by the driver for each block: a multiprocessor has that much more than one block may use."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamShape:
    """The problem of one weight-streaming kernel: y[rows, outputs, groups] = x[rows, inputs] . w.

    Attributes:
        rows: activation rows of one launch.
        outputs: O, the first dimension of the packed weight.
        inputs: I, the reduction axis.
        groups: outputs that are packed together: 2 for qkv (the halves of a rotation) and gate_up (gate and up), else
            1.
        dtype: of the activations as they are multiplied: 'bfloat16', 'float16' or 'float32'. (x itself may be float32
            where it is normed first.)
        weight_dtype: of the weight in memory; None for `dtype`.
        norm: whether all of RMSNorm comes first, fused (vectors) or in a launch of its own (tensor cores).
    """

    rows: int
    outputs: int
    inputs: int
    groups: int = 1
    dtype: str = "bfloat16"
    weight_dtype: str | None = None
    norm: bool = False

    def __post_init__(self):
        if self.weight_dtype is None:
            object.__setattr__(self, "weight_dtype", self.dtype)

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def weight_itemsize(self) -> int:
        return jnp.dtype(self.weight_dtype).itemsize

    @property
    def weight_bytes(self) -> int:
        return self.outputs * self.groups * self.inputs * self.weight_itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """How a weight-streaming kernel is cut.

    Attributes:
        block_n: packed outputs of one program; a power of two.
        block_k: elements of the reduction axis read at a time; a power of two.
        num_warps: warps (32 threads) of one program.
        num_stages: 1 loads weights into registers; more keep that many blocks in flight through shared memory.
        mma: tensor cores instead of multiply-and-add on vectors, one activation row at a time.
        block_m: activation rows of one program with tensor cores, padded; a power of two. Programs of the same weights
            are neighbours, so that all but one of them find those in L2.
        swap_ab: the weights as the first operand of a tensor-core product, the activation rows as the second.
        splits: programs that share the reduction axis of a block; a power of two. More than one leave partial sums to a
            second launch, and read less of the activation rows for as many programs.
    """

    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 1
    mma: bool = False
    block_m: int = MMA_ROWS
    swap_ab: bool = False
    splits: int = 1


def row_blocks_of(shape: StreamShape, tiles: Tiles) -> int:
    """How many programs share a block of weights, each with activation rows of its own."""
    return pl.cdiv(shape.rows, tiles.block_m) if tiles.mma else 1


def shared_memory_bytes(tiles: Tiles, shape: StreamShape) -> int:
    """Shared memory of one program, from what XLA asks for on Ampere, Hopper and Blackwell: at most this, nearly exact.

    A loop of `num_stages` keeps one block less than that in flight, of the weights, of x and, for vectors, of the norm.
    A product's operands otherwise pass through it one after the other. Vectors take more for x and the norm where those
    are float32 and the weight is not: a few KB a row, which only tiles at the limit do not have.
    """
    weights = shape.groups * tiles.block_n * tiles.block_k * shape.weight_itemsize
    norm = tiles.block_k * shape.itemsize if shape.norm and not tiles.mma else 0
    x = (tiles.block_m if tiles.mma else shape.rows) * tiles.block_k * shape.itemsize
    loops = shape.inputs >= 2 * tiles.block_k
    ring = (tiles.num_stages - 1) * (weights + x + norm) if loops else 0
    if not tiles.mma:
        return max(ring, 4 * tiles.block_k)
    at_once = weights if shape.itemsize == 4 else weights // shape.groups
    return max(ring or x + at_once, 4 * tiles.block_m * tiles.block_n)


def registers_per_thread(tiles: Tiles, shape: StreamShape) -> float:
    """Registers that a program needs at least, per thread; there are 255, and beyond them it spills to memory.

    Those of the sums, and of half a block of weights, unless it comes through shared memory.
    """
    if shape.inputs < 2 * tiles.block_k:
        return 0.0  # nothing is carried from block to block
    threads = 32 * tiles.num_warps
    if tiles.mma:
        return tiles.block_m * tiles.block_n * shape.groups / threads
    block = tiles.block_n * tiles.block_k * shape.groups / threads
    return block * shape.rows + (block * shape.weight_itemsize / 8 if tiles.num_stages == 1 else 0.0)


def feasible(tiles: Tiles, shape: StreamShape, device: Device) -> Verdict:
    """Whether `tiles` compile for `shape` on `device`; the verdicts are tested against real compilations."""
    verdict = launch_verdict(tiles, ("block_m", "block_n", "block_k", "splits"))
    if not verdict:
        return verdict
    for field in ("mma", "swap_ab"):
        if not isinstance(getattr(tiles, field), bool):
            return Verdict(False, f"{field}: expected True or False, got {checks.described(getattr(tiles, field))}")
    if not tiles.mma:
        for field, only in (("block_m", MMA_ROWS), ("swap_ab", False), ("splits", 1)):
            if getattr(tiles, field) != only:
                return Verdict(False, f"{field}: without tensor cores only {only}, got {getattr(tiles, field)}")
    if tiles.mma and min(tiles.block_m, tiles.block_n, tiles.block_k) < MMA_ROWS:
        sizes = f"{tiles.block_m}, {tiles.block_n} and {tiles.block_k}"
        return Verdict(False, f"mma: needs block_m, block_n and block_k >= {MMA_ROWS}, got {sizes}")
    if not tiles.mma and shape.rows > MMA_ROWS:
        return Verdict(False, f"mma: more than {MMA_ROWS} rows need tensor cores, got {shape.rows}")
    if shape.inputs % (tiles.splits * (tiles.block_k if tiles.splits > 1 else 1)):
        return Verdict(False, f"splits: {tiles.splits} parts of whole blocks of {tiles.block_k} are not {shape.inputs}")
    if tiles.block_n * tiles.block_k > MAX_BLOCK_ELEMENTS:
        return Verdict(False, f"block_n * block_k: at most {MAX_BLOCK_ELEMENTS} elements in a block")
    return resource_verdict(shared_memory_bytes(tiles, shape), registers_per_thread(tiles, shape), device)


MANY_PROGRAMS = 256
"""About two for each multiprocessor of any GPU."""


def search_space(shape: StreamShape) -> list[Tiles]:
    """The tiles worth trying for `shape` on any device, before `feasible`.

    Vectors for few rows: with 16 to 64 weights a thread loaded in one go, or 16 to 32 in each block of a ring. Tensor
    cores from 2 rows on, and some of them for one row (few with a norm, which they need a launch for); the widest where
    enough programs are left. Beyond 16 rows, products whose operands are alike in size.
    """
    if shape.rows > MMA_ROWS:
        most = padded_rows(shape.rows)
        return [
            Tiles(
                block_m=block_m, block_n=block_n, block_k=block_k, num_warps=num_warps, num_stages=num_stages, mma=True
            )
            for block_m in sorted({min(most, 128), min(most, 64)}, reverse=True)
            for block_n in (64, 32, 128)
            for block_k in (64, 128)
            for num_warps in (4, 8)
            for num_stages in (4, 3)
        ]
    spaces, widest = [], pl.next_power_of_2(shape.inputs)
    if shape.rows <= 4:
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
    spaces += [
        Tiles(block_n=block_n, block_k=block_k, num_warps=num_warps, num_stages=num_stages, mma=True)
        for block_n in wide
        for block_k in ((128, 256) if few else (64, 128, 256, 512))
        for num_warps in (sorted({4 // shape.groups, 4}) if few else (2, 4, 8))
        for num_stages in ((3, 4) if few else (3, 4, 6))
    ]
    return spaces


def padded_rows(rows: int) -> int:
    """Activation rows as tensor cores take them."""
    return max(MMA_ROWS, pl.next_power_of_2(rows))


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
        need, limit = shared_memory_bytes(tiles, shape), device.shared_memory_bytes
        return at_once * (need + RESERVED_BYTES) <= limit + RESERVED_BYTES

    while not have_room(tiles):
        tiles = dataclasses.replace(tiles, block_k=tiles.block_k // 2)
    return tiles


def _many_rows_default(shape: StreamShape, device: Device) -> Tiles:
    """All rows in one program up to 128 of them, 64 outputs of each kind, and three stages or four as there is room."""
    block_m = min(128, padded_rows(shape.rows))
    block_n = 64 if shape.outputs >= 64 * device.num_sms else 32
    num_warps = 8 if block_m * block_n * shape.groups >= 128 * 64 else 4
    block_k = min(64 if shape.itemsize == 2 else 32, max(MMA_ROWS, pl.next_power_of_2(shape.inputs)))
    tiles = Tiles(block_m=block_m, block_n=block_n, block_k=block_k, num_warps=num_warps, num_stages=4, mma=True)
    while not resource_verdict(shared_memory_bytes(tiles, shape), 0, device):
        tiles = dataclasses.replace(tiles, num_stages=tiles.num_stages - 1)
    return tiles


def compatible(shape: StreamShape, entries: Sequence[tuple[StreamShape, Tiles]]) -> list[Tiles]:
    """Which tuned tiles may serve `shape` where it has none of its own, the best first.

    Tensor cores take 2 to 16 rows as 16, more as the next power of two, and stream alike with a norm ahead and without; so do vectors, nearly. For
    one row alone a norm's launch costs tensor cores more than they gain.
    """
    one = shape.rows == 1
    same = shape if one else dataclasses.replace(shape, rows=padded_rows(shape.rows))
    flipped = dataclasses.replace(same, norm=not shape.norm)
    return [
        tiles
        for alike in (same, flipped)
        for other, tiles in entries
        if other == alike and (not (tiles.mma and shape.norm) if one else tiles.mma)
    ]


def default(shape: StreamShape, device: Device) -> Tiles:
    """The heuristic.

    Weights that the register files can hold at once are loaded in one go, by many small programs; longer streams go
    through shared memory, a few blocks ahead; from 2 rows on, tensor cores.
    """
    if shape.rows > MMA_ROWS:
        return _many_rows_default(shape, device)
    if shape.rows > 1:
        return _tensor_core_default(shape, device)
    most, share = pl.next_power_of_2(shape.inputs), shape.weight_bytes / device.num_sms
    if share < FEW_BYTES:
        return Tiles(block_n=2, block_k=min(2048 // shape.groups, most), num_warps=4)
    if share > MANY_BYTES:
        return Tiles(block_n=8 // shape.groups, block_k=min(512, most), num_warps=4, num_stages=4)
    if shape.groups == 2 and shape.inputs > 2048:
        return Tiles(block_n=8, block_k=256, num_warps=4, num_stages=4)
    return Tiles(block_n=4, block_k=min(256, most), num_warps=2, num_stages=4)


def feasible_whole(tiles: Tiles, shape: StreamShape, device: Device) -> Verdict:
    """As `feasible`, for an op that needs whole sums where it streams."""
    if tiles.splits != 1:
        return Verdict(False, f"splits: expected 1 for this op, got {checks.described(tiles.splits)}")
    return feasible(tiles, shape, device)


SPLIT_STREAM = TileSpace(
    tiles=Tiles, shape=StreamShape, search=search_space, feasible=feasible, default=default, compatible=compatible
)
"""Of ops that have a second launch for partial sums."""
STREAM = dataclasses.replace(SPLIT_STREAM, feasible=feasible_whole)
