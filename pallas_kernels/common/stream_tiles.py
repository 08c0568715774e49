"""Tiles of the kernels that stream a weight, and which of them a device can run."""

import dataclasses

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.common import checks
from pallas_kernels.common.devices import Device
from pallas_kernels.common.integer_dots import WORD
from pallas_kernels.common.quantised import FORMATS, RUN
from pallas_kernels.common.tile_space import MMA_ROWS, Verdict, by_warp_groups, launch_verdict, resource_verdict

MAX_BLOCK_ELEMENTS = 2**20
"""The backend's limit on the elements of one block."""
TENSOR_MEMORY_BYTES = 16
"""Of shared memory, for each product whose sums are in Blackwell's tensor memory."""
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
        weight_dtype: of the weight in memory, or its format where it is quantised (`quantised.FORMATS`); None for
            `dtype`.
        scale_group: inputs of a quantised weight that share a scale; None where a row has one, or none.
        activation_bits: that integer weights leave the activations, see `QuantisedWeight`.
        norm: whether all of RMSNorm comes first, fused (vectors) or in a launch of its own (tensor cores).
    """

    rows: int
    outputs: int
    inputs: int
    groups: int = 1
    dtype: str = "bfloat16"
    weight_dtype: str | None = None
    scale_group: int | None = None
    activation_bits: int = 16
    norm: bool = False

    def __post_init__(self):
        if self.weight_dtype is None:
            object.__setattr__(self, "weight_dtype", self.dtype)

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def is_quantised(self) -> bool:
        return self.weight_dtype in FORMATS

    @property
    def in_integers(self) -> bool:
        """Whether vectors multiply integers (`integer_dots`): weights in whole runs, x of 16 bits or to be of 8."""
        runs = self.stored_inputs % RUN == 0 and (self.scale_group or RUN) % RUN == 0
        return self.weight_dtype in ("int8", "int4") and runs and (self.itemsize == 2 or self.activation_bits == 8)

    @property
    def wants_fixed_point(self) -> bool:
        """Whether activations had better come in fixed point. With int8 weights and 16 bits a kernel waits for memory
        long enough to round them by the way: on an H200 it is 1 to 5% faster so."""
        return self.in_integers and (self.weight_dtype == "int4" or self.activation_bits == 8)

    @property
    def parts(self) -> int:
        """Inputs that an element of the weight's array holds, as far apart as the array is long."""
        return 2 if self.weight_dtype == "int4" else 1

    @property
    def stored_inputs(self) -> int:
        """Elements of the weight's array along the reduction axis."""
        return self.inputs // self.parts

    @property
    def weight_itemsize(self) -> int:
        """Bytes of an element of the weight's array."""
        return 1 if self.is_quantised else jnp.dtype(self.weight_dtype).itemsize

    @property
    def weight_bytes(self) -> int:
        """Of the array, without scales."""
        return self.outputs * self.groups * self.stored_inputs * self.weight_itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """How a weight-streaming kernel is cut.

    Attributes:
        block_n: packed outputs of one program; a power of two.
        block_k: elements of the reduction axis read at a time; a power of two. Of int4 each holds two inputs.
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


def in_warp_groups(tiles: Tiles, shape: StreamShape, device: Device) -> bool:
    """Whether the tensor-core products are those of warp groups; see `by_warp_groups`."""
    first = tiles.block_n if tiles.swap_ab else tiles.block_m
    return by_warp_groups(first, tiles.num_warps, shape.itemsize, device)


def shared_memory_bytes(tiles: Tiles, shape: StreamShape, device: Device) -> int:
    """Shared memory of one program, from what XLA asks for on Ampere, Hopper and Blackwell: at most this, nearly exact.

    A loop of `num_stages` keeps one block less than that in flight, of the weights, of x and, for vectors, of the norm;
    products by warp groups hold on to one block more.
    A product's operands otherwise pass through it one after the other. Vectors take more for x and the norm where those
    are float32 and the weight is not: a few KB a row, which only tiles at the limit do not have.
    """
    weights = shape.groups * tiles.block_n * tiles.block_k * shape.weight_itemsize
    norm = shape.parts * tiles.block_k * shape.itemsize if shape.norm and not tiles.mma else 0
    x = (tiles.block_m if tiles.mma else shape.rows) * shape.parts * tiles.block_k * shape.itemsize
    loops = shape.stored_inputs >= 2 * tiles.block_k
    held = tiles.mma and in_warp_groups(tiles, shape, device)
    ring = (tiles.num_stages - (0 if held else 1)) * (weights + x + norm) if loops else 0
    if held and device.compute_capability >= (10, 0):
        ring += TENSOR_MEMORY_BYTES * shape.groups
    if not tiles.mma:
        return max(ring, 4 * tiles.block_k)
    at_once = weights if shape.itemsize == 4 else weights // shape.groups
    return max(ring or x + at_once, 4 * tiles.block_m * tiles.block_n)


def registers_per_thread(tiles: Tiles, shape: StreamShape) -> float:
    """Registers that a program needs at least, per thread; there are 255, and beyond them it spills to memory.

    Those of the sums, and of half a block of weights, unless it comes through shared memory.
    """
    if shape.stored_inputs < 2 * tiles.block_k:
        return 0.0  # nothing is carried from block to block
    threads = 32 * tiles.num_warps
    if tiles.mma:
        return tiles.block_m * tiles.block_n * shape.groups / threads
    block = tiles.block_n * tiles.block_k * shape.groups / threads
    if shape.in_integers:
        return block * shape.rows / RUN + (block / WORD if tiles.num_stages == 1 else 0.0)
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
    if tiles.splits > 1 and (length := shape.stored_inputs) % (tiles.splits * tiles.block_k):
        return Verdict(False, f"splits: {tiles.splits} parts of whole blocks of {tiles.block_k} are not {length}")
    if tiles.block_n * tiles.block_k > MAX_BLOCK_ELEMENTS:
        return Verdict(False, f"block_n * block_k: at most {MAX_BLOCK_ELEMENTS} elements in a block")
    return resource_verdict(shared_memory_bytes(tiles, shape, device), registers_per_thread(tiles, shape), device)


def feasible_whole(tiles: Tiles, shape: StreamShape, device: Device) -> Verdict:
    """As `feasible`, for an op that needs whole sums where it streams."""
    if tiles.splits != 1:
        return Verdict(False, f"splits: expected 1 for this op, got {checks.described(tiles.splits)}")
    return feasible(tiles, shape, device)


def padded_rows(rows: int) -> int:
    """Activation rows as tensor cores take them."""
    return max(MMA_ROWS, pl.next_power_of_2(rows))
