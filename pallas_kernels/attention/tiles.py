"""AttentionTiles of attention, the search space of them, and which a device can run."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.common.devices import Device
from pallas_kernels.common.tile_space import (
    MMA_ROWS,
    WARP_GROUP_ROWS,
    TileSpace,
    Verdict,
    by_warp_groups,
    launch_verdict,
    resource_verdict,
)

SUM_COLUMNS = 16
"""Columns of ones in the product that sums the weights: the narrowest that the tensor cores take."""
FEWEST_PROGRAMS = 32
"""Fewer leave most of any GPU idle."""
COMBINED_A_THREAD = 64
"""Elements of partials that a thread of the combining program reads in one go."""
NEAR_CAPACITY = 1.25
"""How far apart two capacities may be for the tiles of one to serve the other: far less than splits and blocks, which
are powers of two, tell apart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """The problem of one attention call.

    Attributes:
        rows: query rows of one launch; with several tokens each, sequences.
        heads, kv_heads, head_dim: N, K, H.
        context: positions a sequence's cache can hold (lengths are read at run time).
        page_size: Z; equal to context for a contiguous cache.
        dtype: of the queries, and of keys and values that are not in 8 bits.
        tokens: T, query tokens of each sequence, which read its keys together.
        k_dtype, v_dtype: of keys and of values in 8 bits; else None.
    """

    rows: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    page_size: int
    dtype: str = "bfloat16"
    tokens: int = 1
    k_dtype: str | None = None
    v_dtype: str | None = None

    @property
    def itemsize(self) -> int:
        return jnp.dtype(self.dtype).itemsize

    @property
    def kv_itemsizes(self) -> tuple[int, int]:
        """Bytes of a key's number, and of a value's, as they are stored."""
        k, v = (jnp.dtype(dtype or self.dtype).itemsize for dtype in (self.k_dtype, self.v_dtype))
        return k, v

    def group_rows(self, block_t: int = 1) -> int:
        """Query heads of one kv head, of `block_t` tokens, padded to what a product takes."""
        return max(MMA_ROWS, self.kept_rows(block_t))

    def kept_rows(self, block_t: int = 1) -> int:
        """Those of the group_rows that partials are kept of: each token's heads padded to a power of two."""
        return block_t * pl.next_power_of_2(self.heads // self.kv_heads)

    @property
    def in_runs(self) -> bool:
        """Whether what a program makes can be in fixed point: of one token, each head in whole runs of 16."""
        return self.tokens == 1 and self.head_dim == self.padded_head_dim

    @property
    def padded_head_dim(self) -> int:
        return max(16, pl.next_power_of_2(self.head_dim))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionTiles:
    """How attention is cut.

    Attributes:
        block_s: keys read at a time; a power of two of 16 or more.
        splits: programs that share the keys of one (row or block of tokens, kv head); a power of two.
        num_warps: warps (32 threads) of one program.
        num_stages: blocks of keys and values in flight.
        block_t: tokens of a sequence for which one program reads the keys once; a power of two.
    """

    block_s: int
    splits: int
    num_warps: int = 4
    num_stages: int = 2
    block_t: int = 1


def programs(shape: AttentionShape, block_t: int) -> int:
    """Programs of a launch without splits."""
    return shape.rows * pl.cdiv(shape.tokens, block_t) * shape.kv_heads


def combined_at_once(tiles: AttentionTiles, shape: AttentionShape) -> int:
    """How many splits' partials the combining program reads in one go."""
    partial = shape.kept_rows(tiles.block_t) * shape.padded_head_dim
    return min(tiles.splits, pl.next_power_of_2(COMBINED_A_THREAD * 32 * tiles.num_warps // partial + 1) // 2 or 1)


def shared_memory_bytes(tiles: AttentionTiles, shape: AttentionShape, device: Device) -> int:
    """Shared memory of one program, from what XLA asks for on Ampere, Hopper and Blackwell: at most this, nearly exact.

    The queries, a block of weights, and the ring of key and value blocks: a loop of `num_stages` keeps one block less
    than that in flight. Products that read shared memory by themselves hold on to one block more, and read the ones
    that sum the weights from there too, but the weights from registers. What is in 8 bits lies in the ring as that;
    values in 8 bits take weights in another order than the sum of these does, which are then there twice.
    """
    rows = shape.group_rows(tiles.block_t)
    queries = rows * shape.padded_head_dim * shape.itemsize
    weights = rows * tiles.block_s * shape.itemsize
    whole, *stored = (
        tiles.block_s * shape.padded_head_dim * itemsize for itemsize in (shape.itemsize, *shape.kv_itemsizes)
    )
    without_loop = tiles.num_stages == 1 or tiles.splits * tiles.block_s >= shape.context
    ahead = 0 if without_loop else tiles.num_stages - 1
    ring = ahead * sum(stored)
    if by_warp_groups(rows, tiles.num_warps, shape.itemsize, device):
        ones = tiles.block_s * SUM_COLUMNS * shape.itemsize
        return ring + 2 * whole + queries + ones + 1024
    if without_loop:
        # Nothing is in flight: keys and values pass through it one after the other, or together in float32.
        return (2 if shape.itemsize == 4 else 1) * whole + queries + weights
    if shape.itemsize == 4:
        return ring + sum(whole for size in stored if size < whole) + queries + weights + 256
    return ring + queries + weights * (2 if stored[1] < whole else 1) + 256


def registers_per_thread(tiles: AttentionTiles, shape: AttentionShape) -> float:
    """Registers that a program needs at least, per thread; there are 255, and beyond them it spills to memory.

    Of the loop over keys: the weighted values, the scores and the weights, and a block of keys as it is stored. Of the
    combining program: the partials that it reads in one go, and their sum.
    """
    threads = 32 * tiles.num_warps
    width, rows = shape.padded_head_dim, shape.group_rows(tiles.block_t)
    keys = tiles.block_s * width * shape.kv_itemsizes[0] / (4 if tiles.num_stages == 1 else 8)
    loop = rows * width + 2 * rows * tiles.block_s + keys
    at_once = combined_at_once(tiles, shape) if tiles.splits > 1 else 0
    combine = (at_once + 1) * shape.kept_rows(tiles.block_t) * width
    return max(loop, combine) / threads


def feasible(tiles: AttentionTiles, shape: AttentionShape, device: Device) -> Verdict:
    """Whether `tiles` compile for `shape` on `device`; the verdicts are tested against real compilations."""
    verdict = launch_verdict(tiles, ("block_s", "splits", "block_t"))
    if not verdict:
        return verdict
    if tiles.block_s < 16:
        return Verdict(False, f"block_s: expected 16 or more, got {tiles.block_s}")
    return resource_verdict(shared_memory_bytes(tiles, shape, device), registers_per_thread(tiles, shape), device)


def search_space(shape: AttentionShape) -> list[AttentionTiles]:
    """The tiles worth trying for `shape` on any device, before `feasible`."""
    if shape.tokens > 1:
        return _search_space_of_tokens(shape)
    return [
        AttentionTiles(block_s=block_s, splits=splits, num_warps=num_warps, num_stages=num_stages)
        for block_s in (16, 32, 64, 128)
        for splits in (1, 8, 16, 32, 64)
        for num_warps in (2, 4, 8)
        for num_stages in (1, 2, 3, 4)
        if splits * block_s <= max(2 * shape.context, 16)
        and (splits * shape.rows * shape.kv_heads >= FEWEST_PROGRAMS or splits * block_s >= shape.context)
        # With a block for each split there is no loop, hence nothing to keep in flight.
        and (num_stages == 1 or splits * block_s < shape.context)
        and 1 <= block_s // (8 * num_warps) <= 4
    ]


def _search_space_of_tokens(shape: AttentionShape) -> list[AttentionTiles]:
    """As `search_space`, for several tokens: two sizes of their blocks, and fewer values of all else."""
    largest = _block_t(shape, 2 * _query_rows(shape))
    return [
        AttentionTiles(block_s=block_s, splits=splits, num_warps=num_warps, num_stages=num_stages, block_t=block_t)
        for block_t in dict.fromkeys((max(1, largest // 2), largest))
        for block_s, num_warps in ((32, 4), (64, 4), (64, 8), (128, 4), (128, 8))
        for splits in (1, 4, 16)
        for num_stages in (1, 2, 3)
        if splits * block_s <= max(2 * shape.context, 32)
        and (splits * programs(shape, block_t) >= FEWEST_PROGRAMS or splits in (16, pl.cdiv(shape.context, block_s)))
        and (num_stages == 1) == (splits * block_s >= shape.context)
    ]


def default(shape: AttentionShape, device: Device) -> AttentionTiles:
    """The heuristic: about one program a multiprocessor, no program with less than one block of keys.

    Blocks of keys are larger where a program has four or more of the larger ones. A program takes all the tokens of a
    sequence, up to as many as one product takes: fewer where they leave no room for keys.
    """
    block_t = _block_t(shape, _query_rows(shape))
    while not feasible(tiles := _default(shape, device, block_t), shape, device) and block_t > 1:
        block_t //= 2
    return tiles


def _query_rows(shape: AttentionShape) -> int:
    """Of one program: as many as one product takes. Float32 has no tensor cores, and more rows of it spill."""
    return WARP_GROUP_ROWS if shape.itemsize == 2 else MMA_ROWS


def _block_t(shape: AttentionShape, query_rows: int) -> int:
    """The largest block of tokens that makes up to so many query rows, and is no larger than it need be."""
    return min(pl.next_power_of_2(shape.tokens), max(1, query_rows // shape.kept_rows()))


def _default(shape: AttentionShape, device: Device, block_t: int) -> AttentionTiles:
    most = 1 << (max(1, device.num_sms // programs(shape, block_t)).bit_length() - 1)
    block_s = 64 if shape.padded_head_dim <= 128 else 32
    few_rows = block_t == 1 or shape.group_rows(block_t) < WARP_GROUP_ROWS
    if few_rows and shape.itemsize == 2 and shape.padded_head_dim <= 128 and shape.context >= 4 * 128 * most:
        block_s = 128
    blocks = max(1, -(-shape.context // block_s))
    splits = min(most, 1 << (blocks.bit_length() - 1))
    return AttentionTiles(
        block_s=block_s,
        splits=splits,
        num_warps=8 if block_s == 128 and min(shape.kv_itemsizes) == 1 else 4,  # what is unpacked takes registers
        num_stages=1 if splits >= blocks else 3,
        block_t=block_t,
    )


def compatible(shape: AttentionShape, entries: Sequence[tuple[AttentionShape, AttentionTiles]]) -> list[AttentionTiles]:
    """Which tuned tiles may serve `shape` where it has none of its own: those of about its capacity, the nearest first.

    Callers' capacities are what they happen to need, tuned ones are round. A contiguous cache, whose page is all of it,
    goes with contiguous ones, a paged one with those of the same pages; and tiles that were found without a loop over
    blocks serve only where they need none. Numbers of tokens up to the same power of two make the same blocks of them.
    """
    near = []
    for other, tiles in entries:
        page_size = other.context if shape.page_size == shape.context else shape.page_size
        factor = max(other.context, shape.context) / min(other.context, shape.context)
        tokens = other.tokens if pl.next_power_of_2(other.tokens) == pl.next_power_of_2(shape.tokens) else shape.tokens
        same_otherwise = other == dataclasses.replace(shape, context=other.context, page_size=page_size, tokens=tokens)
        looping = {tiles.splits * tiles.block_s < size for size in (other.context, shape.context)}
        if same_otherwise and factor <= NEAR_CAPACITY and len(looping) == 1:
            near.append((factor, tiles))
    return [tiles for _, tiles in sorted(near, key=lambda found: found[0])]


ATTENTION = TileSpace(
    tiles=AttentionTiles,
    shape=AttentionShape,
    search=search_space,
    feasible=feasible,
    default=default,
    compatible=compatible,
)
