"""Which axis order of the KV cache reads faster: heads before positions, or positions before heads.

    python -m experiments.layouts.cache

needs an NVIDIA GPU and takes about a minute. A kernel with the grid, the blocks and the ring of decode attention only
reads keys and values, from caches [P, K, Z, H] (one head's positions are contiguous) and [P, Z, K, H] (one position's
heads are), in pages of 16 and 256 positions and in one page: cold, in a chain of dependent calls.
"""

import itertools
import sys

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

import pallas_kernels as pk
from experiments.bench import options as command_line
from experiments.bench import provenance
from experiments.bench.device import in_path, needed_gpu
from experiments.bench.log import Log
from experiments.bench.models import config_of
from experiments.layouts import cold_reads
from experiments.layouts.cold_reads import Options
from tokenspeed.measure.timing import Timing, time_calls

MEASURING = ("experiments.layouts.cache",)
BLOCK_S, SPLITS, STAGES = 64, 16, 3
LAYOUTS = ("PKZH", "PZKH")


def read(before: jax.Array, k: jax.Array, v: jax.Array, layout: str) -> jax.Array:
    """Sums of the keys and values that each program reads, plus `before`: float32 [programs, H]."""
    pages, kv_heads, page_size, head_dim = k.shape if layout == "PKZH" else (k.shape[i] for i in (0, 2, 1, 3))
    each = pages * page_size // BLOCK_S // SPLITS

    def kernel(refs, sums_ref):
        pk.launch_dependents()
        split, head = pl.program_id(0), pl.program_id(1)

        def step(j, total):
            pk.pipeline_loop(STAGES)
            positions = (split * each + j) * BLOCK_S + jnp.arange(BLOCK_S, dtype=jnp.int32)[:, None]
            page, slot, dim = positions // page_size, positions % page_size, jnp.arange(head_dim, dtype=jnp.int32)[None]
            where = (page, head, slot, dim) if layout == "PKZH" else (page, slot, head, dim)
            where = tuple(jnp.broadcast_to(part, (BLOCK_S, head_dim)) for part in where)
            return total + refs.k[where].astype(jnp.float32) + refs.v[where].astype(jnp.float32)

        total = lax.fori_loop(0, each, step, jnp.zeros((BLOCK_S, head_dim), jnp.float32))
        program = head * SPLITS + split
        sums_ref[program] = jnp.sum(total, axis=0) + refs.before[program]

    return pk.launch(
        kernel,
        name=f"read_{layout}",
        grid=(SPLITS, kv_heads),
        inputs=dict(before=before, k=k, v=v),
        outputs=[jax.ShapeDtypeStruct(before.shape, jnp.float32)],
        num_warps=4,
        num_stages=1,
    )[0]


def time_layout(model: str, context: int, page_size: int, layout: str) -> tuple[Timing, int]:
    """Microseconds of one call, and the bytes that it reads."""
    m = config_of(model)
    sizes = dict(P=context // page_size, K=m.num_kv_heads, Z=page_size, H=m.head_dim)
    shape = tuple(sizes[axis] for axis in layout)
    moved = 2 * 2 * context * m.num_kv_heads * m.head_dim
    count, passes = cold_reads.lengths(moved)
    make = jax.jit(lambda key: jax.random.normal(key, shape, jnp.bfloat16))
    caches = [tuple(make(k) for k in jax.random.split(key)) for key in jax.random.split(jax.random.key(0), count)]
    before = jnp.zeros((m.num_kv_heads * SPLITS, m.head_dim), jnp.float32)
    run = cold_reads.chained(lambda before, cache: read(before, *cache, layout), before, caches, passes)
    return time_calls(run, calls=count * passes, samples=7), moved


def run(options: Options, command: str) -> None:
    needed_gpu("the comparison of cache layouts")
    origin = provenance.collect(command, *MEASURING)
    cases = itertools.product(("llama-3.1-8b", "llama-3.2-1b"), (1024, 8192), (16, 256, None), LAYOUTS)
    with Log(in_path(options.results)) as log:
        for model, context, page_size, layout in cases:
            page_size = page_size or context
            timing, moved = time_layout(model, context, page_size, layout)
            fields = dict(model=model, context=context, page_size=page_size, layout=layout)
            cold_reads.append(log, "cache_layout", fields, timing, moved, origin)
            print(f"{model} {context} page {page_size:5} {layout}: {timing.median_us:7.2f} us", flush=True)
    print(f"Records: {log.path}")


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.layouts.cache", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
