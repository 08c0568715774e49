"""The device that an experiment runs on."""

import jax

import pallas_kernels as pk
from experiments.bench.errors import UsageError
from pallas_kernels import Device


class DeviceLost(Exception):
    """The device does not answer any more, after a kernel that failed."""


def gpu_here() -> Device | None:
    """The GPU that jax runs on, None where there is none; one that is not known is an error."""
    if jax.default_backend() != "gpu":
        return None
    kind = jax.devices()[0].device_kind
    device = pk.find_device(kind)
    if device is None:
        raise UsageError(f"device: unknown GPU {kind!r}; expected one of {', '.join(pk.DEVICES)}")
    return device


def needed_gpu(who: str) -> Device:
    """The GPU that jax runs on; an error for `who` needs one where there is none."""
    device = gpu_here()
    if device is None:
        raise UsageError(f"{who} needs an NVIDIA GPU, and there is none here")
    return device


def in_path(path: str) -> str:
    """A path with '{device}' replaced by the short name of the device that jax runs on."""
    device = gpu_here()
    return path.replace("{device}", device.key if device else "cpu")


def probe_device() -> None:
    """Raises DeviceLost where nothing runs any more: a kernel's illegal access takes the whole context with it."""
    try:
        jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.zeros((8,))))
    except Exception as error:
        raise DeviceLost(reason_of(error)) from None


def reason_of(error: Exception) -> str:
    """An error in one line of at most 200 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
