"""What it means to be a space of tiles: the part that every kernel's tiles have in common."""

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pallas_kernels.common import checks
from pallas_kernels.common.devices import Device

MAX_THREADS = 1024
"""Of one program."""
MMA_ROWS = 16
"""Activation rows of one tensor-core instruction; fewer are padded."""
WARP_GROUP_ROWS = 64
"""Of a product's first operand, from which four warps multiply together, on Hopper and later."""


def by_warp_groups(rows: int, num_warps: int, itemsize: int, device: Device) -> bool:
    """Whether a product with so many rows in its first operand reads its operands from shared memory by itself."""
    whole = rows >= WARP_GROUP_ROWS and num_warps % 4 == 0 and itemsize == 2
    return whole and device.compute_capability >= (9, 0)


class Verdict(NamedTuple):
    """Whether a tile can be compiled for a device, and the reason where not."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileSpace:
    """The tiles of a kind of kernel.

    Attributes:
        tiles, shape: the dataclasses of a tile and of the problem that it is for.
        search: shape -> the tiles worth trying on any device, before `feasible`.
        feasible: (tiles, shape, device) -> Verdict; tested against real compilations.
        default: (shape, device) -> the heuristic's tiles.
        compatible: (shape, [(shape, tiles), ...] tuned for others) -> the tiles that may serve this shape, best first.
    """

    tiles: type
    shape: type
    search: Callable[[Any], list]
    feasible: Callable[[Any, Any, Device], Verdict]
    default: Callable[[Any, Device], Any]
    compatible: Callable[[Any, Sequence[tuple[Any, Any]]], list]


def is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_power_of_two(value: Any) -> bool:
    return is_whole(value) and value > 0 and value & (value - 1) == 0


def launch_verdict(tiles: Any, powers_of_two: Sequence[str]) -> Verdict:
    """The checks that need no shape: of the fields that must be powers of two, `num_warps` among them, and stages."""
    for field in (*powers_of_two, "num_warps"):
        if not is_power_of_two(getattr(tiles, field)):
            return Verdict(False, f"{field}: expected a power of two, got {checks.described(getattr(tiles, field))}")
    if not is_whole(tiles.num_stages) or tiles.num_stages < 1:
        return Verdict(
            False, f"num_stages: expected a whole number of 1 or more, got {checks.described(tiles.num_stages)}"
        )
    if 32 * tiles.num_warps > MAX_THREADS:
        return Verdict(False, f"num_warps: expected at most {MAX_THREADS // 32}, got {tiles.num_warps}")
    return Verdict(True)


def resource_verdict(need_bytes: int, registers: float, device: Device) -> Verdict:
    """Whether a program's shared memory and its registers a thread are there."""
    if need_bytes > device.shared_memory_bytes:
        return Verdict(
            False,
            f"shared memory: needs {need_bytes} bytes, {device.name} has {device.shared_memory_bytes} for a block",
        )
    if registers > 255:
        return Verdict(False, f"registers: needs about {registers:.0f} a thread, there are 255")
    return Verdict(True)
