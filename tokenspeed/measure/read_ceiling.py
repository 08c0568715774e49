"""The rate at which a device reads its memory: what every figure of this project is held against."""

import functools

import jax
import jax.numpy as jnp

import pallas_kernels as pk
from tokenspeed.measure.read_patterns import PATTERNS, TmaRead
from tokenspeed.measure.timing import time_calls


def gpu_read_ceiling_gbps(gibibytes: int = 4, passes: int = 10) -> float:
    """GB/s at which a Pallas kernel reads device memory: the best of a few plain streaming reads, each the median of 5.

    One launch reads `gibibytes` GiB `passes` times and adds up what it reads, so launch and ramp do not count.
    """
    device = pk.current_device()
    data = jax.jit(lambda key: jax.random.normal(key, (gibibytes * 2**29,), jnp.bfloat16))(jax.random.key(0))
    best = 0.0
    for pattern in PATTERNS:
        if isinstance(pattern, TmaRead) and device.compute_capability < (9, 0):
            continue
        read, read_bytes = pattern.reader(data.size, passes, num_sms=device.num_sms)
        timing = time_calls(functools.partial(jax.jit(read), data), calls=1, samples=5)
        best = max(best, read_bytes / timing.median_us / 1e3)
    return best


def read_ceiling_gbps() -> float:
    """Of the device that jax runs on."""
    return gpu_read_ceiling_gbps() if jax.default_backend() == "gpu" else cpu_read_ceiling_gbps()


def cpu_read_ceiling_gbps(mebibytes: int = 512) -> float:
    """GB/s at which XLA on this machine's processor reads memory: a sum or a product, the 10th percentile of 21.

    The percentile and not the median, since what else runs on the machine only ever adds to a time.
    """
    data = jnp.ones((mebibytes * 2**6, 4096), jnp.float32)
    ones = jnp.ones((4096,), jnp.float32)
    reads = functools.partial(jax.jit(jnp.sum), data), functools.partial(jax.jit(jnp.matmul), data, ones)
    return data.nbytes / min(time_calls(read, calls=1, samples=21).p10_us for read in reads) / 1e3
