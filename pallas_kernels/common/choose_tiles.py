"""Which tiles a call runs with: its argument, else the tuned file of this device, else the heuristic.

Of the tuned file, tuned/<device>/<op>.json, the entry of exactly this shape, else the first feasible one of those that
may serve it as well (`TileSpace.compatible`).
"""

import functools
import importlib.resources
import json
from typing import Any, NamedTuple

import jax

from pallas_kernels.common import devices
from pallas_kernels.common.devices import Device
from pallas_kernels.common.tile_space import TileSpace


class Entry(NamedTuple):
    """A shape, and the tiles that were measured to be the fastest for it."""

    shape: Any
    tiles: Any


def current_device() -> Device:
    """The GPU that is lowered for (an abstract mesh's device first); on a machine without one, an H100."""
    mesh = jax.sharding.get_abstract_mesh()
    described = None if mesh.empty else mesh.abstract_device
    kind = described.device_kind if described is not None else jax.devices()[0].device_kind
    return devices.find(kind) or devices.DEFAULT


@functools.cache
def load(op: str, device_key: str, space: TileSpace) -> list[Entry]:
    """The entries of tuned/<device>/<op>.json, or [] where there is no such file.

    A field that an entry lacks has its default; one that is not known is an error, so that no entry is lost in silence.
    """
    path = importlib.resources.files("pallas_kernels") / "tuned" / device_key / f"{op}.json"
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text())["entries"]
        return [Entry(space.shape(**entry["shape"]), space.tiles(**entry["tiles"])) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"tuned/{device_key}/{op}.json: expected 'entries' of a shape and tiles ({error})") from None


def choose(op: str, shape: Any, device: Device, space: TileSpace) -> Any:
    """The tiles of a call that names none."""
    entries = load(op, device.key, space)
    exact = [tiles for other, tiles in entries if other == shape]
    found = exact or space.compatible(shape, entries)
    return next((tiles for tiles in found if space.feasible(tiles, shape, device)), None) or space.default(
        shape, device
    )


def resolve(op: str, tiles: Any, shape: Any, space: TileSpace) -> Any:
    """The tiles to use on the current device; raises where an argument's tiles cannot run."""
    device = current_device()
    if tiles is None:
        return choose(op, shape, device, space)
    if not isinstance(tiles, space.tiles):
        raise TypeError(f"tiles: expected pallas_kernels.{space.tiles.__name__}, got {type(tiles).__name__}")
    verdict = space.feasible(tiles, shape, device)
    if not verdict:
        raise ValueError(f"tiles: {verdict.reason}")
    return tiles
