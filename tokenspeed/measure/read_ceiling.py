"""The rate at which a device reads its memory: what every figure of this project is held against."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

import pallas_kernels as pk
from tokenspeed.measure.timing import time_calls


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadPattern:
    """How a kernel reads all of an array: elements of bf16 a step, and `each` programs a multiprocessor.

    Attributes:
        num_stages: steps in flight through shared memory; 1 loads into registers.
        runs: whether a program reads a run of neighbouring blocks, or blocks of all programs take turns.
    """

    block: int
    num_warps: int
    each: int
    num_stages: int = 1
    runs: bool = False


PATTERNS = (
    ReadPattern(block=4096, num_warps=4, each=8),
    ReadPattern(block=2048, num_warps=4, each=8),
    ReadPattern(block=8192, num_warps=8, each=4),
    ReadPattern(block=16384, num_warps=8, each=1, num_stages=6, runs=True),
    ReadPattern(block=8192, num_warps=8, each=2, num_stages=6, runs=True),
    ReadPattern(block=16384, num_warps=8, each=1, num_stages=6),
)
"""Many programs that take turns, and few that read long runs with much in flight, as attention reads its keys."""


def gpu_read_ceiling_gbps(gibibytes: int = 4, passes: int = 10) -> float:
    """GB/s at which a Pallas kernel reads device memory: the best of a few plain streaming reads, each the median of 5.

    One launch reads `gibibytes` GiB `passes` times and adds up what it reads, so launch and ramp do not count.
    """
    data = jax.jit(lambda key: jax.random.normal(key, (gibibytes * 2**29,), jnp.bfloat16))(jax.random.key(0))
    best = 0.0
    for pattern in PATTERNS:
        read, read_bytes = reader(pattern, data.size, passes, multiprocessors=pk.current_device().num_sms)
        timing = time_calls(functools.partial(jax.jit(read), data), calls=1, samples=5)
        best = max(best, read_bytes / timing.median_us / 1e3)
    return best


def reader(pattern: ReadPattern, size: int, passes: int, *, multiprocessors: int, interpret: bool = False):
    """A kernel that reads bf16 [size], but for what is left over, `passes` times, and the bytes that it reads.

    It returns the sums of its programs, float32 [programs].
    """
    block, programs = pattern.block, multiprocessors * pattern.each
    steps = size // block // programs

    def kernel(data_ref, sum_ref):
        program = pl.program_id(0)

        def body(j, total):
            if pattern.num_stages > 1 and not interpret:
                pk.pipeline_loop(pattern.num_stages)
            step = lax.rem(j, jnp.int32(steps))
            start = program * steps + step if pattern.runs else step * programs + program
            values = plt.load(data_ref.at[pl.ds(start * block, block)], eviction_policy="evict_first")
            return total + values.astype(jnp.float32)

        total = lax.fori_loop(0, steps * passes, body, jnp.zeros((block,), jnp.float32))
        sum_ref[program] = jnp.sum(total)

    read = pl.pallas_call(
        kernel,
        grid=(programs,),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=pl.BlockSpec(memory_space=pl.ANY),
        out_shape=jax.ShapeDtypeStruct((programs,), jnp.float32),
        compiler_params=plt.CompilerParams(num_warps=pattern.num_warps, num_stages=pattern.num_stages),
        interpret=interpret,
    )
    return read, steps * passes * programs * block * 2


def read_ceiling_gbps() -> float:
    """Of the device that jax runs on."""
    return gpu_read_ceiling_gbps() if jax.default_backend() == "gpu" else cpu_read_ceiling_gbps()


def cpu_read_ceiling_gbps(mebibytes: int = 256) -> float:
    """GB/s at which XLA on this machine's processor reads memory: the median of 7 sums over a float32 array."""
    data = jnp.ones((mebibytes * 2**18,), jnp.float32)
    timing = time_calls(functools.partial(jax.jit(jnp.sum), data), calls=1, samples=7)
    return data.nbytes / timing.median_us / 1e3
