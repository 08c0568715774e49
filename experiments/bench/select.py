"""Which records of tiles count: by case, by the software that made them, the fastest first."""

from collections.abc import Sequence

import pallas_kernels as pk
from experiments.bench.models import MODELS
from experiments.bench.record import Record
from experiments.bench.recorded import OPS
from pallas_kernels import Device

CASE = ("op", "model", "rows", "context", "page_size", "kv_dtype", "dtype")
SOFTWARE = ("device", "jax", "sources")
"""What records must share to be compared: the device, the jax, and the sources of what was timed."""


def known(records: Sequence[Record]) -> list[Record]:
    """The records of ops, of cases that this repository still knows."""
    return [found for found in records if found.get("op") in OPS and found["model"] in MODELS]


def of_device(records: Sequence[Record], device: Device, kind: str = "tile") -> list[Record]:
    """The records of a kind that a GPU of that model made, of cases that this repository still knows."""
    return [found for found in known(records) if found["kind"] == kind and pk.find_device(found["device"]) == device]


def by_case(records: Sequence[Record]) -> dict[tuple, list[Record]]:
    """Records of tiles by case, in the order in which the cases first appear."""
    cases: dict[tuple, list[Record]] = {}
    for found in records:
        cases.setdefault(tuple(found[field] for field in CASE), []).append(found)
    return cases


def newest(records: Sequence[Record]) -> list[Record]:
    """The records of a case that the same software made on the same device as the last of them."""
    software = [_software(found) for found in records]
    return [found for found, one in zip(records, software) if one == software[-1]]


def fullest(records: Sequence[Record]) -> list[Record]:
    """The records of a case by the software, on one device, that tried the most tiles; of equal ones by the last.

    A later sweep of part of the tiles does not hide that of all.
    """
    by: dict[tuple, list[Record]] = {}
    for found in records:
        by[_software(found)] = [*by.pop(_software(found), []), found]
    return max(reversed(by.values()), key=lambda members: len({str(found["tiles"]) for found in members}))


def timed(records: Sequence[Record]) -> list[Record]:
    """Those of kernels that ran right on a GPU, fastest first; of one tile measured again the last."""
    last = {str(found["tiles"]): found for found in records if found["kind"] == "tile"}
    kept = [found for found in last.values() if found["status"] == "ok" and found["median_us"] is not None]
    return sorted(kept, key=lambda found: found["median_us"])


def _software(found: Record) -> tuple:
    return tuple(found[field] for field in SOFTWARE)
