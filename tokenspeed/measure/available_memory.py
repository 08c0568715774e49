"""Memory that is left on the device, and one line in place of what runs out of it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import psutil

CGROUPS = Path("/sys/fs/cgroup")


class NotEnoughMemory(MemoryError):
    """What was to be done takes more memory than there is; one line says how much of each."""


def available_bytes() -> int:
    """Bytes that this process can still take on the default device.

    On a GPU those of JAX's allocator. On a CPU the least of what the machine has free, what the process's cgroup
    (a container's limit) leaves, and what `ulimit -v` leaves.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    found = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError, StopIteration):  # another system, or no limit
        group = CGROUPS / next(
            line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
        ).strip("/")
        used = int((group / "memory.current").read_text())
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["file"]
        found.append(int((group / "memory.max").read_text()) - used + int(cached))
    if hasattr(psutil, "RLIMIT_AS"):  # Linux
        limit, _ = psutil.Process().rlimit(psutil.RLIMIT_AS)
        if limit != psutil.RLIM_INFINITY:
            found.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(found))


@contextlib.contextmanager
def needing(count: int, what: str) -> Iterator[None]:
    """A context that takes at least `count` bytes on the default device for `what`.

    Raises:
        NotEnoughMemory: there is less, before anything is done; or memory ran out inside.
    """
    available = available_bytes()
    problem = f"{what}: takes at least {count / 1e9:,.1f} GB of memory, {available / 1e9:,.1f} GB are available"
    if count > available:
        raise NotEnoughMemory(problem)
    try:
        yield
    except MemoryError as error:
        raise NotEnoughMemory(f"{problem}; memory ran out") from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise NotEnoughMemory(f"{problem}; memory ran out") from error
