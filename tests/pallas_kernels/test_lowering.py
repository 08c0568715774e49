"""Kernels lower for an NVIDIA GPU, on a machine without one."""

import dataclasses
import random

import pytest

import pallas_kernels as pk
from pallas_kernels.common.checks import DTYPES
from pallas_kernels.common.devices import DEVICES
from tests.pallas_kernels import inputs
from tests.pallas_kernels.covering import covering
from tests.pallas_kernels.inputs import Layout
from tests.pallas_kernels.lowering import lower
from tests.pallas_kernels.marks import slow

OPS = ("qkv", "attention", "out", "gate_up", "down", "head", "head_logits")
SAMPLE = 4
ONE_OF_EACH_KERNEL = ("qkv", "attention", "gate_up", "down", "head")
"""`out` is the kernel of `down`, and `head_logits` that of `head` but for what it stores."""


def space(call):
    """The tiles of the search space that an H100 can run."""
    op = pk.OPS[call.function.__name__]
    return [tile for tile in op.search_space(call.shape) if op.feasible(tile, call.shape, DEVICES["h100"])]


def model_call(model, op, rows):
    return inputs.of_model(inputs.Shapes(), model, op, rows=rows)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 8, 100])
@pytest.mark.parametrize("op", ONE_OF_EACH_KERNEL)
def test_tiles_that_cover_the_search_space(op, rows):
    """Whatever `feasible` admits lowers: checked of tiles in which any two values of two fields meet that meet in any
    tile of the search space, the smallest and the largest among them.

    They are a quarter of the space. What a kernel branches on is one field (`mma`, whether blocks of `block_k` need a
    loop) or two (`mma` and `num_stages`, `splits` and `block_s` or `num_warps`), never three.
    """
    call = model_call("llama-3.1-8b", op, rows)
    tiles = space(call)
    chosen = covering(tiles)
    assert chosen and len(chosen) < len(tiles) / 2, "a space that has lost its structure is to be lowered whole"
    for tile in chosen:
        assert "triton" in lower(call, tile), tile


@pytest.mark.slow
@pytest.mark.parametrize("rows, tokens", [(8, 4), (1, 128)])
def test_tiles_of_several_tokens(rows, tokens):
    call = inputs.of_model(inputs.Shapes(), "llama-3.1-8b", "attention", rows=rows, tokens=tokens)
    for tile in covering(space(call)):
        assert "triton" in lower(call, tile), tile
    for key in DEVICES:
        assert "triton" in lower(call, key=key), key


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 8, 100])
@pytest.mark.parametrize(
    "model, op",
    [("llama-3.2-1b", op) for op in OPS] + [("llama-3.1-8b", op) for op in OPS if op not in ONE_OF_EACH_KERNEL],
)
def test_sampled_tiles(model, op, rows):
    """`SAMPLE` tiles drawn evenly from the search space of each shape, the same ones every time."""
    call = model_call(model, op, rows)
    for tile in random.Random(f"{model} {op} {rows}").sample(space(call), SAMPLE):
        assert "triton" in lower(call, tile), tile


@pytest.mark.slow
@pytest.mark.parametrize("key", DEVICES)
@pytest.mark.parametrize("op", OPS)
def test_heuristic_tiles_on_every_device(op, key):
    for rows in (1, 16):
        assert "triton" in lower(model_call("llama-3.2-1b", op, rows), key=key)


SHAPES = inputs.Shapes()
RAGGED = {
    "qkv": lambda dtype: inputs.qkv(
        SHAPES,
        rows=3,
        width=100,
        heads=6,
        kv_heads=2,
        head_dim=24,
        layout=Layout(6, 4),
        rotary_dim=8,
        bias=True,
        dtype=dtype,
    ),
    "qkv, qk-norm": lambda dtype: inputs.qkv(
        SHAPES, rows=3, width=100, heads=6, kv_heads=2, head_dim=80, layout=Layout(19), qk_norm=True, dtype=dtype
    ),
    "attention, paged": lambda dtype: inputs.attention(
        SHAPES, rows=3, heads=6, kv_heads=2, head_dim=80, layout=Layout(48, 9), window=20, soft_cap=9.0, dtype=dtype
    ),
    "attention, contiguous": lambda dtype: inputs.attention(
        SHAPES, rows=3, heads=5, kv_heads=1, head_dim=24, layout=Layout(99), dtype=dtype
    ),
    "attention, tokens": lambda dtype: inputs.attention(
        SHAPES,
        rows=3,
        heads=6,
        kv_heads=2,
        head_dim=80,
        layout=Layout(48, 9),
        window=20,
        soft_cap=9.0,
        tokens=5,
        sequences=2,
        dtype=dtype,
    ),
    "attention, tokens, contiguous": lambda dtype: inputs.attention(
        SHAPES, rows=3, heads=5, kv_heads=1, head_dim=24, layout=Layout(99), tokens=3, counters=True, dtype=dtype
    ),
    "down": lambda dtype: inputs.projection(SHAPES, rows=3, outputs=37, inputs=100, bias=True, dtype=dtype),
    "down, norm": lambda dtype: inputs.projection(SHAPES, rows=3, outputs=37, inputs=100, dtype=dtype, norm=True),
    "gate_up, deferred norm": lambda dtype: inputs.deferred(
        SHAPES, inputs.gate_up(SHAPES, rows=3, width=100, features=37, dtype=dtype)
    ),
    "gate_up": lambda dtype: inputs.gate_up(
        SHAPES, rows=3, width=100, features=37, bias=True, activation="gelu_tanh", dtype=dtype
    ),
    "head": lambda dtype: inputs.head(
        SHAPES, pk.head, rows=3, width=100, vocabulary=37, bias=True, soft_cap=30.0, dtype=dtype
    ),
}


@pytest.mark.parametrize("dtype", [dtype if dtype == "bfloat16" else slow(dtype) for dtype in DTYPES])
@pytest.mark.parametrize("name", RAGGED)
def test_ragged_shapes_and_every_option(name, dtype):
    """What only compiled kernels do (masks, tails, options) in both forms; interpret mode takes other branches."""
    call = RAGGED[name](dtype)
    if "attention" in name:
        tiles = [pk.AttentionTiles(block_s=block, splits=splits) for block in (16, 64) for splits in (1, 4)]
        if "tokens" in name:
            tiles = [dataclasses.replace(tile, block_t=block_t) for tile in tiles for block_t in (1, 4)]
    else:
        block_n = 64 if "norm" in name else 16
        tiles = [pk.Tiles(block_n=block_n, block_k=32, num_stages=3, mma=mma) for mma in (False, True)]
    for tile in tiles:
        assert "triton" in lower(call, tile), tile
