"""Which order of a weight's bytes reads faster: row by row, gate and up separate, or tile by tile.

    python -m experiments.layouts.weights

needs an NVIDIA GPU and takes about a minute. A kernel with the grid, the tiles and the ring of a projection of one row
only reads its weight, from three orders that a weight could be packed in once, when it is loaded:

rows: as the kernels have it, each row of memory one output; two outputs that are needed together lie side by side.
separate: as checkpoints have it, all of gate, then all of up; for the ops whose outputs belong together in pairs.
tiles: what a program loads at a time is one contiguous piece.
"""

import dataclasses
import functools
import itertools
import sys

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

import pallas_kernels as pk
from experiments.bench import cases, provenance
from experiments.bench import options as command_line
from experiments.bench.compiling import compile_all
from experiments.bench.device import in_path, needed_gpu
from experiments.bench.log import Log
from experiments.layouts import cold_reads
from experiments.layouts.cold_reads import Options
from pallas_kernels import StreamShape, Tiles
from tokenspeed.measure.timing import Timing, time_calls

MEASURING = ("experiments.layouts.weights",)
OPS, MODELS = ("qkv", "out", "gate_up", "down"), ("llama-3.1-8b", "llama-3.2-1b")
ROUNDS = 3


def layouts(shape: StreamShape) -> tuple[str, ...]:
    return ("rows", "separate", "tiles") if shape.groups == 2 else ("rows", "tiles")


def read(before: jax.Array, w: jax.Array, shape: StreamShape, tiles: Tiles, layout: str, interpret: bool = False):
    """Sums of what each program reads of w [outputs * groups * inputs], plus `before`: float32 [programs]."""
    rows, steps = tiles.block_n * shape.groups, shape.inputs // tiles.block_k

    def offsets(block, j):
        row, column = jnp.arange(rows, dtype=jnp.int32)[:, None], jnp.arange(tiles.block_k, dtype=jnp.int32)[None, :]
        if layout == "tiles":
            return ((block * steps + j) * rows + row) * tiles.block_k + column
        if layout == "separate":
            row = row % shape.groups * shape.outputs + block * tiles.block_n + row // shape.groups
        else:
            row = block * rows + row
        return row * shape.inputs + j * tiles.block_k + column

    def kernel(refs, sums_ref):
        block = pl.program_id(0)

        def step(j, total):
            if not interpret and tiles.num_stages > 1:
                pk.pipeline_loop(tiles.num_stages)
            return total + refs.w[offsets(block, j)].astype(jnp.float32)

        total = lax.fori_loop(0, steps, step, jnp.zeros((rows, tiles.block_k), jnp.float32))
        if not interpret:
            pk.launch_dependents()
        sums_ref[block] = jnp.sum(total) + refs.before[block]

    return pk.launch(
        kernel,
        name=f"read_{layout}",
        grid=(shape.outputs // tiles.block_n,),
        inputs=dict(before=before, w=w),
        outputs=[jax.ShapeDtypeStruct(before.shape, jnp.float32)],
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=interpret,
    )[0]


def time_layouts(shape: StreamShape, tiles: Tiles) -> tuple[dict[str, Timing], int]:
    """Microseconds of one call by layout, of `ROUNDS` in turn (the card's rate moves), and the bytes that it reads."""
    if shape.inputs % tiles.block_k or shape.outputs % tiles.block_n:
        raise ValueError(f"expected tiles that divide {shape}, got {tiles}")
    elements = shape.outputs * shape.groups * shape.inputs
    count, passes = cold_reads.lengths(2 * elements)
    make = jax.jit(lambda key: jax.random.normal(key, (elements,), jnp.bfloat16))
    weights = [make(key) for key in jax.random.split(jax.random.key(0), count)]
    before = jnp.zeros((shape.outputs // tiles.block_n,), jnp.float32)

    def chain(layout):
        return cold_reads.chained(lambda before, w: read(before, w, shape, tiles, layout), before, weights, passes)

    names = layouts(shape)
    chains = compile_all([functools.partial(chain, layout) for layout in names])
    found: dict[str, list[Timing]] = {layout: [] for layout in names}
    for _ in range(ROUNDS):
        for layout, run in zip(names, chains, strict=True):
            found[layout].append(time_calls(run, calls=count * passes, samples=5))
    return {layout: _together(timings) for layout, timings in found.items()}, 2 * elements


def _together(timings: list[Timing]) -> Timing:
    """The round of the middle, with the percentiles of the widest."""
    middle = sorted(timings, key=lambda timing: timing.median_us)[len(timings) // 2]
    low, high = min(timing.p10_us for timing in timings), max(timing.p90_us for timing in timings)
    return dataclasses.replace(middle, p10_us=low, p90_us=high)


def run(options: Options, command: str) -> None:
    device = needed_gpu("the comparison of weight layouts")
    origin = provenance.collect(command, *MEASURING)
    with Log(in_path(options.results)) as log:
        for model, op in itertools.product(MODELS, OPS):
            case = cases.make(op, model)
            tiles = case.known.chosen_tiles(case.shape, device)
            timings, moved = time_layouts(case.shape, tiles)
            for layout, timing in timings.items():
                fields = dict(model=model, op=op, layout=layout, tiles=dataclasses.asdict(tiles))
                cold_reads.append(log, "weight_layout", fields, timing, moved, origin)
                print(f"{model} {op:8} {layout:6} {timing.median_us:7.2f} us", flush=True)
    print(f"Records: {log.path}")


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.layouts.weights", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
