"""The read ceiling that decode steps are held against: measured, or who else says it."""

import dataclasses

import jax

import pallas_kernels as pk
from tokenspeed.measure.read_ceiling import read_ceiling_gbps


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """The rate at which the device's memory can be read.

    Attributes:
        bytes_per_s: of it. source: 'measured', 'given', or 'datasheet' where memory did not suffice to measure it.
    """

    bytes_per_s: float
    source: str


def ceiling(given_gbps: float | None) -> Ceiling | None:
    """What is given in GB/s, of which 0 is none; else what is measured, before a model takes the memory.

    It takes a few seconds. None where neither the measurement nor a datasheet says it.
    """
    if given_gbps is not None:
        return Ceiling(1e9 * given_gbps, "given") if given_gbps else None
    try:
        return Ceiling(1e9 * read_ceiling_gbps(), "measured")
    except (MemoryError, jax.errors.JaxRuntimeError):
        device, kind = pk.current_device(), jax.local_devices()[0].device_kind
        return Ceiling(1e9 * device.datasheet_gbps, "datasheet") if kind.startswith(device.name) else None
