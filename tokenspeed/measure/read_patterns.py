"""Kernels that do nothing but read an array: the forms that the read ceiling is found among.

Each reads bf16 [size], but for what is left over, `passes` times in one launch, and returns the sums of its programs,
float32 [programs], so that nothing is read for nobody.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as mosaic
from jax.experimental.pallas import triton

import pallas_kernels as pk

Read = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TritonRead:
    """Elements of bf16 a step, and `each` programs a multiprocessor.

    Attributes:
        num_stages: steps in flight through shared memory; 1 loads into registers.
        runs: whether a program reads a run of neighbouring blocks, or blocks of all programs take turns.
    """

    block: int
    num_warps: int
    each: int
    num_stages: int = 1
    runs: bool = False

    def reader(self, size: int, passes: int, *, num_sms: int, interpret: bool = False) -> tuple[Read, int]:
        """The kernel, and the bytes that it reads."""
        block, programs = self.block, num_sms * self.each
        steps = size // block // programs

        def kernel(data_ref, sum_ref):
            program = pl.program_id(0)

            def body(j, total):
                if self.num_stages > 1 and not interpret:
                    pk.pipeline_loop(self.num_stages)
                step = lax.rem(j, jnp.int32(steps))
                start = program * steps + step if self.runs else step * programs + program
                values = triton.load(data_ref.at[pl.ds(start * block, block)], eviction_policy="evict_first")
                return total + values.astype(jnp.float32)

            total = lax.fori_loop(0, steps * passes, body, jnp.zeros((block,), jnp.float32))
            sum_ref[program] = jnp.sum(total)

        read = pl.pallas_call(
            kernel,
            grid=(programs,),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            out_shape=jax.ShapeDtypeStruct((programs,), jnp.float32),
            compiler_params=triton.CompilerParams(num_warps=self.num_warps, num_stages=self.num_stages),
            interpret=interpret,
        )
        return read, steps * passes * programs * block * 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TmaRead:
    """Blocks of bf16 that the tensor memory accelerator (Hopper and later) copies into a ring of shared memory.

    One program of 128 threads a multiprocessor; blocks of all programs take turns.

    Attributes:
        block: elements, a multiple of LANES.
        slots: blocks in flight.
    """

    block: int
    slots: int

    LANES = 256
    """Elements that a block is wide, as TMA sees it: the most that it takes."""

    def reader(self, size: int, passes: int, *, num_sms: int, interpret: bool = False) -> tuple[Read, int]:
        """The kernel, and the bytes that it reads."""
        shape = (self.block // self.LANES, self.LANES)
        layout = mosaic.Layout.WG_STRIDED(shape, vec_size=8)
        steps = size // self.block // num_sms

        def kernel(data_ref, sum_ref):
            program = lax.axis_index("program")

            def body(_, block_ref, total):
                return total + mosaic.load(block_ref, layout=layout, optimized=False).astype(jnp.float32)

            blocks = mosaic.BlockSpec(
                shape, lambda j: (lax.rem(j, jnp.int32(steps)) * num_sms + program, 0), delay_release=1
            )
            zeros = mosaic.layout_cast(jnp.zeros(shape, jnp.float32), layout)
            total = mosaic.emit_pipeline(
                body, grid=(steps * passes,), in_specs=[blocks], max_concurrent_steps=self.slots, init_carry=zeros
            )(data_ref)
            sum_ref[program] = jnp.sum(total)

        read = mosaic.kernel(
            kernel,
            out_type=jax.ShapeDtypeStruct((num_sms,), jnp.float32),
            grid=(num_sms,),
            grid_names=("program",),
            interpret=mosaic.InterpretGPUParams() if interpret else None,
        )
        whole = size // self.LANES * self.LANES  # no copy where there is no remainder
        return lambda data: read(data[:whole].reshape(-1, self.LANES)), steps * passes * num_sms * self.block * 2


PATTERNS = (
    TritonRead(block=4096, num_warps=4, each=8),
    TritonRead(block=2048, num_warps=4, each=8),
    TritonRead(block=8192, num_warps=8, each=4),
    TritonRead(block=16384, num_warps=8, each=1, num_stages=6, runs=True),
    TritonRead(block=8192, num_warps=8, each=2, num_stages=6, runs=True),
    TritonRead(block=16384, num_warps=8, each=1, num_stages=6),
    TmaRead(block=8192, slots=12),
)
"""Many programs that take turns; few that read long runs with much in flight, as attention reads its keys; and TMA."""
