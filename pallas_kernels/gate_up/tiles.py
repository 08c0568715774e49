"""Tiles of gate_up."""

from pallas_kernels.common import tiles as stream_tiles
from pallas_kernels.common import tuned
from pallas_kernels.common.tiles import StreamShape, Tiles, feasible, search_space, stand_ins

__all__ = ["Tiles", "default", "feasible", "resolve", "search_space", "stand_ins"]


def default(shape: StreamShape, device) -> Tiles:
    """The heuristic."""
    return stream_tiles.default(shape, device)


def resolve(tiles: Tiles | None, shape: StreamShape) -> Tiles:
    """The argument, else the tuned tile, else the heuristic."""
    return tuned.resolve("gate_up", tiles, shape, kind=Tiles, default=default, feasible=feasible, stand_ins=stand_ins)
