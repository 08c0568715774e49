"""The space of tiles of the kernels that stream a weight, for any number of activation rows."""

import dataclasses
from collections.abc import Sequence

from pallas_kernels.common import few_rows, many_rows
from pallas_kernels.common.devices import Device
from pallas_kernels.common.quantised import RUN
from pallas_kernels.common.stream_tiles import StreamShape, Tiles, feasible, feasible_whole, padded_rows
from pallas_kernels.common.tile_space import MMA_ROWS, TileSpace

FIXED_POINT_ROWS = few_rows.VECTOR_ROWS
"""Up to how many activation rows come in fixed point: of more, tensor cores multiply floats."""
FORMS_OF_MANY = 16
"""How many of the tiles of many rows are tried for 3 to 16, the most promising ones: their forms, for few rows."""


def search_space(shape: StreamShape) -> list[Tiles]:
    """The tiles worth trying for `shape` on any device, before `feasible`; of many rows the most promising first."""
    if shape.rows > MMA_ROWS:
        return many_rows.search_space(shape)
    few = few_rows.search_space(shape)
    if shape.rows <= few_rows.VECTOR_ROWS:
        return few
    return list(dict.fromkeys([*few, *many_rows.search_space(shape)[:FORMS_OF_MANY]]))


def default(shape: StreamShape, device: Device) -> Tiles:
    """The heuristic, of an op with a second launch for partial sums."""
    found = many_rows.default(shape, device) if shape.rows > MMA_ROWS else few_rows.default(shape, device)
    return within_groups(found, shape)


def search_space_whole(shape: StreamShape) -> list[Tiles]:
    """As `search_space`, for an op that needs whole sums where it streams."""
    return [tiles for tiles in search_space(shape) if tiles.splits == 1]


def default_whole(shape: StreamShape, device: Device) -> Tiles:
    """As `default`, for an op that needs whole sums where it streams."""
    if shape.rows > MMA_ROWS:
        return within_groups(many_rows.default(shape, device, feasible_whole), shape)
    return default(shape, device)


def makes_runs(shape: StreamShape) -> bool:
    """Whether an op of such a weight is to make whole runs of its result, for the next op to take in fixed point.

    What the next one takes depends on its own weight, which is not known here: it is presumed to be of the same format.
    """
    return shape.wants_fixed_point and shape.rows <= FIXED_POINT_ROWS and shape.outputs % RUN == 0


def _of_runs(space: TileSpace) -> TileSpace:
    """The space of an op whose result may be in fixed point.

    On vectors a program of fewer than 16 outputs, which leaves floats, is the faster one only at the cost of the next
    kernel, whose programs each round all of them: so none is tried, and none is the heuristic's, where the next weight
    is presumed to be of this one's format (`makes_runs`). It can run.
    """

    def search(shape: StreamShape) -> list[Tiles]:
        found = space.search(shape)
        if not makes_runs(shape):
            return found
        return [tiles for tiles in found if tiles.mma or tiles.block_n % RUN == 0]

    def default(shape: StreamShape, device: Device) -> Tiles:
        return few_rows.default_of_runs(shape) if makes_runs(shape) else space.default(shape, device)

    return dataclasses.replace(space, search=search, default=default)


def within_groups(tiles: Tiles, shape: StreamShape) -> Tiles:
    """With blocks that each lie in a group of inputs that share a scale, where that leaves them wide enough."""
    if shape.scale_group is None or (shape.in_integers and not tiles.mma):
        return tiles
    divisor = shape.scale_group & -shape.scale_group  # the largest power of two
    return dataclasses.replace(tiles, block_k=min(tiles.block_k, divisor)) if divisor >= MMA_ROWS else tiles


def compatible(shape: StreamShape, entries: Sequence[tuple[StreamShape, Tiles]]) -> list[Tiles]:
    """Which tuned tiles may serve `shape` where it has none of its own, the best first.

    Tensor cores take up to 16 rows as 16, more as the next power of two, and stream alike with a norm ahead and
    without; so do vectors, nearly, and those of one row serve 2. For one row alone a norm's launch costs tensor cores
    more than they gain.
    """

    def alike(rows: int, mma: Sequence[bool]) -> list[Tiles]:
        same = dataclasses.replace(shape, rows=rows)
        flipped = dataclasses.replace(same, norm=not shape.norm)
        ones = [
            dataclasses.replace(one, activation_bits=bits)
            for bits in (shape.activation_bits, 16)
            for one in (same, flipped)
        ]
        return [tiles for one in dict.fromkeys(ones) for other, tiles in entries if other == one and tiles.mma in mma]

    if shape.rows == 1:
        return alike(1, (False,) if shape.norm else (False, True))
    own = alike(shape.rows, (False, True))
    few = alike(1, (False,)) if shape.rows <= few_rows.VECTOR_ROWS else []
    return own + few + alike(padded_rows(shape.rows), (True,))


SPLIT_STREAM = TileSpace(
    tiles=Tiles, shape=StreamShape, search=search_space, feasible=feasible, default=default, compatible=compatible
)
"""Of ops that have a second launch for partial sums."""
STREAM = dataclasses.replace(SPLIT_STREAM, search=search_space_whole, feasible=feasible_whole, default=default_whole)
RUNS_OF_SPLIT_STREAM, RUNS_OF_STREAM = map(_of_runs, (SPLIT_STREAM, STREAM))
"""The same, of ops whose result may be in fixed point."""
