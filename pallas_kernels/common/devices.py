"""Facts of the GPUs that tiles are judged for. Sources: the vendor's datasheets and the CUDA programming guide."""

import dataclasses

from pallas_kernels.common import checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU model.

    Attributes:
        name: what jax calls its `device_kind`.
        key: the short name used on the command line and for the folder of tuned tiles.
        num_sms: streaming multiprocessors.
        shared_memory_bytes: the most that one thread block may use.
        datasheet_gbps: memory bandwidth by the datasheet, GB/s (1e9 bytes).
        compute_capability: (major, minor).
    """

    name: str
    key: str
    num_sms: int
    shared_memory_bytes: int
    datasheet_gbps: float
    compute_capability: tuple[int, int]

    @property
    def has_fp8(self) -> bool:
        """Whether it converts 8-bit floats."""
        return self.compute_capability >= (8, 9)


_ALL = (
    Device(name="NVIDIA A100", key="a100", num_sms=108, shared_memory_bytes=166912, datasheet_gbps=2039,
           compute_capability=(8, 0)),
    Device(name="NVIDIA H100", key="h100", num_sms=132, shared_memory_bytes=232448, datasheet_gbps=3352,
           compute_capability=(9, 0)),
    Device(name="NVIDIA H200", key="h200", num_sms=132, shared_memory_bytes=232448, datasheet_gbps=4800,
           compute_capability=(9, 0)),
    Device(name="NVIDIA B200", key="b200", num_sms=148, shared_memory_bytes=232448, datasheet_gbps=8000,
           compute_capability=(10, 0)),
)  # fmt: skip
DEVICES = {device.key: device for device in _ALL}
DEFAULT = DEVICES["h100"]


def find(kind: str) -> Device | None:
    """The GPU of a key ('h200') or of a jax `device_kind` ('NVIDIA H200', 'NVIDIA H100 80GB HBM3'), or None.

    Raises:
        TypeError: `kind` is no string.
    """
    checks.instance("kind", kind, str)
    for device in _ALL:
        if kind == device.key or kind.startswith(device.name):
            return device
    return None
