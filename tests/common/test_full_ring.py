"""Tiles that name a number of programs: each streams its run of blocks, and the numbers stay what they were."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pallas_kernels as pk
from pallas_kernels.common.devices import DEVICES
from pallas_kernels.common.launch import guarded
from pallas_kernels.common.stream import blocks_of, programs_of, start_of
from pallas_kernels.common.tiles import StreamShape, Tiles, feasible, search_space
from tests import inputs
from tests.lowering import lower


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def operands(rows: int, outputs: int, inputs: int) -> dict:
    """By op, the call of it with these sizes; qkv has heads of 16 in `outputs` pairs of them."""
    x, norm = normal(0, rows, inputs), normal(1, inputs)
    plain = pk.DenseWeight(rows=normal(2, outputs, inputs), bias=normal(3, outputs))
    paired = pk.DenseWeight(rows=normal(4, outputs, 2, inputs), bias=normal(5, outputs, 2))
    heads = pk.DenseWeight(rows=normal(6, 6 * 8, 2, inputs))
    cache = pk.KVCache(k=normal(7, rows, 1, 24, 16), v=normal(8, rows, 1, 24, 16))
    rope = normal(9, 24, 8), normal(10, 24, 8)
    qkv = dict(positions=jnp.arange(rows, dtype=jnp.int32) + 3, rope=rope)
    gains = dict(q_norm=normal(11, 16), k_norm=normal(12, 16))
    return dict(
        down=lambda **how: pk.down(x, plain, residual=normal(13, rows, outputs), **how),
        gate_up=lambda **how: pk.gate_up(x, norm, paired, activation="silu", **how),
        head=lambda **how: pk.head(x, norm, plain, **how),
        head_logits=lambda **how: pk.head_logits(x, norm, plain, **how),
        qkv=lambda **how: pk.qkv(x, norm, heads, cache, **qkv, **how),
        qkv_normed=lambda **how: pk.qkv(x, norm, heads, cache, **qkv, **gains, **how),
    )


OPS = tuple(operands(1, 1, 16))


@settings(max_examples=6)
@given(
    rows=st.integers(1, 3), outputs=st.integers(1, 70), steps=st.integers(1, 3), programs=st.integers(1, 9),
    mma=st.booleans(),
)  # fmt: skip
@pytest.mark.parametrize("op", OPS)
def test_the_same_numbers_as_a_program_a_block(op, rows, outputs, steps, programs, mma):
    tiles = Tiles(block_n=16 if mma or op == "qkv_normed" else 4, block_k=16, num_stages=3, mma=mma)
    call = operands(rows, outputs, 16 * steps)[op]
    plain, shared = (
        call(implementation="interpret", tiles=t) for t in (tiles, dataclasses.replace(tiles, programs=programs))
    )
    # The sums are the same in the same order, but XLA compiles the interpreted loops apart and rounds some elsewhere.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5), plain, shared)


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_read_or_written_outside(op):
    with guarded():
        tiles = Tiles(block_n=8, block_k=16, num_stages=3, programs=3)
        found = operands(2, 43, 32)[op](implementation="interpret", tiles=tiles)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("blocks, programs", [(1, 4), (7, 3), (8, 8), (100, 9), (128_256, 264), (2**30, 2**29 - 1)])
def test_programs_share_the_blocks_evenly(blocks, programs):
    shape, tiles = (
        StreamShape(rows=1, outputs=4 * blocks - 1, inputs=16),
        Tiles(block_n=4, block_k=16, programs=programs),
    )
    assert blocks_of(shape, tiles) == blocks and programs_of(shape, tiles) == min(blocks, programs)
    programs = min(blocks, programs)
    some = np.unique(np.linspace(0, programs - 1, 300, dtype=np.int32))
    starts, stops = (np.asarray(start_of(jnp.asarray(i, jnp.int32), blocks, programs)) for i in (some, some + 1))
    assert starts[0] == 0 and stops[-1] == blocks and (stops > starts).all()
    assert set(stops - starts) <= {blocks // programs, -(-blocks // programs)}


def test_what_is_not_feasible_is_said():
    shape = StreamShape(rows=1, outputs=4096, inputs=14336)
    tiles, device = Tiles(block_n=4, block_k=2048, num_stages=3, programs=132), DEVICES["h200"]
    assert feasible(tiles, shape, device)
    verdict = feasible(dataclasses.replace(tiles, block_k=4096), shape, device)
    assert verdict.reason == "programs: need a block_k that divides 14336, got 4096"
    verdict = feasible(dataclasses.replace(tiles, programs=-1), shape, device)
    assert verdict.reason == "programs: expected 0 or more, got -1"


@pytest.mark.parametrize("rows, fewest", [(1, 40), (2, 20), (16, 20)])
def test_the_search_space_keeps_memory_busy(rows, fewest):
    shape = StreamShape(rows=rows, outputs=14336, inputs=4096, groups=2, norm=True)
    found = [tiles for tiles in search_space(shape) if tiles.programs]
    assert len(found) > fewest and {tiles.mma for tiles in found} == {rows > 1}
    for tiles in found:
        step = 2 * shape.itemsize * tiles.block_n * tiles.block_k * tiles.programs // 132
        assert (tiles.num_stages - 1) * step >= 64 << 10, tiles


def test_the_loop_over_blocks_is_lowered_as_a_pipeline():
    call = inputs.gate_up(inputs.Shapes(), rows=1, width=4096, features=1024)
    assert "tt.num_stages" in lower(call, Tiles(block_n=1, block_k=4096, num_stages=4, programs=132))
    assert "tt.num_stages" not in lower(call, Tiles(block_n=1, block_k=4096, num_stages=4))  # no loop at all
