"""Which tiles a call runs with: the argument, else the tuned file of this device, else the op's heuristic.

Of the tuned file the entry of exactly this shape, else the first of those that the op lets stand in for it.
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from pallas_kernels.common import devices, levers
from pallas_kernels.common.devices import Device


def current_device() -> Device:
    """The GPU that is lowered for (an abstract mesh's device first); on a machine without one, a default."""
    mesh = jax.sharding.get_abstract_mesh()
    described = None if mesh.empty else mesh.abstract_device
    kind = described.device_kind if described is not None else jax.devices()[0].device_kind
    return devices.find(kind) or devices.DEFAULT


@functools.cache
def load(op: str, device_key: str) -> list[dict[str, Any]]:
    """The entries of tuned/<device>/<op>.json, or [] where there is no such file."""
    path = importlib.resources.files("pallas_kernels") / "tuned" / device_key / f"{op}.json"
    if not path.is_file():
        return []
    try:
        return json.loads(path.read_text())["entries"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"tuned/{device_key}/{op}.json: expected a JSON object with 'entries' ({error})") from None


def lookup(op: str, shape: Any, device: Device) -> dict[str, Any] | None:
    """The tuned tile for exactly this shape, as a dict, or None."""
    wanted = dataclasses.asdict(shape)
    for entry in load(op, device.key):
        if entry["shape"] == wanted:
            return entry["tiles"]
    return None


class Entry(NamedTuple):
    """A shape, and the tiles that were found the fastest for it."""

    shape: Any
    tiles: Any


def choose(
    op: str, shape: Any, device: Device, *, kind: type, default: Callable, feasible: Callable, stand_ins: Callable
) -> Any:
    """The tiles of a call that names none: tuned ones that are feasible for its shape, else the heuristic's.

    Args:
        stand_ins: (shape, entries of other shapes) -> the tiles that may serve it as well, the best first.
    """
    exact = lookup(op, shape, device)
    if not levers.used("tuned_tiles"):
        found = []
    elif exact is not None:
        found = [kind(**exact)]
    else:
        entries = [Entry(type(shape)(**e["shape"]), kind(**e["tiles"])) for e in load(op, device.key)]
        found = stand_ins(shape, entries)
    return next((tiles for tiles in found if feasible(tiles, shape, device)), None) or default(shape, device)


def resolve(
    op: str, tiles: Any, shape: Any, *, kind: type, default: Callable, feasible: Callable, stand_ins: Callable
) -> Any:
    """The tiles to use; raises where an argument's tiles cannot run."""
    device = current_device()
    if tiles is not None:
        if not isinstance(tiles, kind):
            raise TypeError(f"tiles: expected {kind.__module__}.{kind.__name__}, got {type(tiles).__name__}")
        verdict = feasible(tiles, shape, device)
        if not verdict:
            raise ValueError(f"tiles: {verdict.reason}")
        return tiles
    return choose(op, shape, device, kind=kind, default=default, feasible=feasible, stand_ins=stand_ins)
