"""Which tiles a call runs with: the argument, else the tuned file of this device, else the op's heuristic."""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Callable
from typing import Any

import jax

from pallas_kernels.common import devices
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


def resolve(op: str, tiles: Any, shape: Any, *, kind: type, default: Callable, feasible: Callable) -> Any:
    """The tiles to use; raises where an argument's tiles cannot run."""
    device = current_device()
    if tiles is not None:
        if not isinstance(tiles, kind):
            raise TypeError(f"tiles: expected {kind.__module__}.{kind.__name__}, got {type(tiles).__name__}")
        verdict = feasible(tiles, shape, device)
        if not verdict:
            raise ValueError(f"tiles: {verdict.reason}")
        return tiles
    found = lookup(op, shape, device)
    return kind(**found) if found is not None else default(shape, device)
