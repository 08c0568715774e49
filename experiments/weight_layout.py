"""Which order of a weight's bytes reads faster: row by row, halves apart, or tile by tile.

    python -m experiments.weight_layout

needs an NVIDIA GPU and takes about a minute. A kernel with the grid, the tiles and the ring of a projection of one row
only reads its weight, from three orders that a weight could be packed in once, when it is loaded:

rows: as the kernels have it, each row of memory one output; the two rows that a sum needs together lie side by side.
apart: as checkpoints have it, all gate rows, then all up rows; for the ops whose rows belong together in pairs.
tiles: what a program loads at a time is one contiguous piece.
"""

import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import lax
from jax.experimental import pallas as pl

from experiments import cases, provenance
from experiments.gpu import compile_all
from pallas_kernels.common import devices, hooks
from pallas_kernels.common.launch import launch, let_next_start
from pallas_kernels.common.tiles import StreamShape, Tiles
from tokenspeed import measure

OPS, MODELS = ("qkv", "out", "gate_up", "down"), ("llama-3.1-8b", "llama-3.2-1b")
COLD_BYTES, PASS_US, ROUNDS = 300e6, 20_000, 3

_RESULTS = flags.DEFINE_string("weight_results", "out/weight-layout-{device}.jsonl", "JSON lines that rows go to")


def layouts(shape: StreamShape) -> tuple[str, ...]:
    return ("rows", "apart", "tiles") if shape.groups == 2 else ("rows", "tiles")


def read(before: jax.Array, w: jax.Array, shape: StreamShape, tiles: Tiles, layout: str, interpret: bool = False):
    """Sums of the rows [outputs * groups * inputs] that each program reads, plus `before`: float32 [programs]."""
    rows, steps = tiles.block_n * shape.groups, shape.inputs // tiles.block_k

    def offsets(block, j):
        row, column = jnp.arange(rows, dtype=jnp.int32)[:, None], jnp.arange(tiles.block_k, dtype=jnp.int32)[None, :]
        if layout == "tiles":
            return ((block * steps + j) * rows + row) * tiles.block_k + column
        if layout == "apart":
            row = row % shape.groups * shape.outputs + block * tiles.block_n + row // shape.groups
        else:
            row = block * rows + row
        return row * shape.inputs + j * tiles.block_k + column

    def kernel(refs, sums_ref):
        block = pl.program_id(0)

        def step(j, total):
            if not interpret and tiles.num_stages > 1:
                hooks.pipeline_loop(tiles.num_stages)
            return total + refs.w[offsets(block, j)].astype(jnp.float32)

        total = lax.fori_loop(0, steps, step, jnp.zeros((rows, tiles.block_k), jnp.float32))
        let_next_start(interpret)
        sums_ref[block] = jnp.sum(total) + refs.before[block]

    return launch(
        kernel,
        name=f"read_{layout}",
        grid=(shape.outputs // tiles.block_n,),
        inputs=dict(before=before, w=w),
        outputs=[jax.ShapeDtypeStruct(before.shape, jnp.float32)],
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=interpret,
    )[0]


def prepared(op: str, model: str, device: devices.Device):
    """The case's shape and tiles, cold weights, and a function that makes the program (before, weights) of a layout."""
    case = cases.make(op, model)
    shape, tiles = case.shape, case.chosen(device)
    if shape.inputs % tiles.block_k or shape.outputs % tiles.block_n:
        raise ValueError(f"{op} of {model}: expected tiles that divide {shape}, got {tiles}")
    elements = shape.outputs * shape.groups * shape.inputs
    count = int(COLD_BYTES // (2 * elements)) + 1
    passes = int(PASS_US / count / (2 * elements / 4e6 + 3)) + 1
    make = jax.jit(lambda key: jax.random.normal(key, (elements,), jnp.bfloat16))
    weights = [make(key) for key in jax.random.split(jax.random.key(0), count)]
    before = jnp.zeros((shape.outputs // tiles.block_n,), jnp.float32)

    def program(layout):
        def chain(before, weights):
            def once(_, before):
                return functools.reduce(lambda before, w: read(before, w, shape, tiles, layout), weights, before)

            return lax.fori_loop(0, passes, once, before)

        return jax.jit(chain).lower(before, weights).compile()

    return shape, tiles, 2 * elements, count * passes, (before, weights), program


def main(argv) -> None:
    if jax.default_backend() != "gpu":
        raise app.UsageError("the comparison of weight layouts needs an NVIDIA GPU")
    origin = provenance.collect(["python", "-m", "experiments.weight_layout", *argv[1:]])
    device = devices.named(origin["device"])
    path = pathlib.Path(_RESULTS.value.format(device=device.key))
    path.parent.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        for op in OPS:
            shape, tiles, moved, calls, arguments, program = prepared(op, model, device)
            names = layouts(shape)
            programs = compile_all([functools.partial(program, layout) for layout in names], 0)
            found: dict[str, list[measure.Timing]] = {layout: [] for layout in names}
            for _ in range(ROUNDS):  # in turn: the card's rate moves
                for layout, run in zip(names, programs, strict=True):
                    found[layout].append(measure.time_calls(functools.partial(run, *arguments), calls=calls, samples=5))
            for layout, timings in found.items():
                best = sorted(timings, key=lambda timing: timing.median_us)[ROUNDS // 2]
                row = dict(
                    op="weight_layout",
                    model=model,
                    of=op,
                    layout=layout,
                    tiles=cases.fields_of(tiles),
                    median_us=round(best.median_us, 3),
                    p10_us=round(min(timing.p10_us for timing in timings), 3),
                    p90_us=round(max(timing.p90_us for timing in timings), 3),
                    bytes=moved,
                    achieved_gbps=round(moved / best.median_us / 1e3, 1),
                    date=provenance.now(),
                )
                with path.open("a") as file:
                    file.write(json.dumps(row | origin) + "\n")
                print(f"{model} {op:8} {layout:6} {best.median_us:7.2f} us", flush=True)


if __name__ == "__main__":
    app.run(main, argv=sys.argv)
