"""The kernel that reads weights finds the same ones in every order of their bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.layouts import weights
from pallas_kernels import StreamShape, Tiles
from tokenspeed.measure.timing import Timing

TILES = Tiles(block_n=4, block_k=32, num_warps=4, num_stages=3)


def shape_of(groups):
    return StreamShape(rows=1, outputs=16, inputs=64, groups=groups, dtype="bfloat16", norm=True)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_every_order_is_read_as_it_was_packed(groups):
    shape = shape_of(groups)
    w = jax.random.normal(jax.random.key(0), (16, groups, 64), jnp.bfloat16)
    blocks, steps = 16 // TILES.block_n, 64 // TILES.block_k
    packed = dict(
        rows=w,
        separate=w.swapaxes(0, 1),
        tiles=w.reshape(blocks, TILES.block_n * groups, steps, TILES.block_k).swapaxes(1, 2),
    )
    before = jnp.arange(float(blocks))
    truth = np.asarray(w, np.float32).reshape(blocks, -1).sum(1) + np.asarray(before)
    assert weights.layouts(shape) == (("rows", "separate", "tiles") if groups == 2 else ("rows", "tiles"))
    for layout in weights.layouts(shape):
        found = weights.read(before, packed[layout].reshape(-1), shape, TILES, layout, interpret=True)
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-4, err_msg=layout)  # sums of 512 in another order


def test_layouts_take_turns_and_the_middle_round_counts(monkeypatch):
    """With the percentiles of the widest round, since the card's rate moves."""
    timed, given = [], iter([Timing(10.0 * i, 10.0 * i - 1, 10.0 * i + 1, 5) for i in (1, 2, 9, 4, 3, 6)])

    def time_calls(run, *, calls, samples):
        timed.append(run)
        return next(given)

    monkeypatch.setattr(weights, "time_calls", time_calls)
    monkeypatch.setattr(weights.cold_reads, "lengths", lambda call_bytes: (2, 1))
    monkeypatch.setattr(weights.cold_reads, "chained", lambda read, before, arrays, passes: object())
    found, moved = weights.time_layouts(shape_of(1), TILES)
    assert moved == 2 * 16 * 64 and list(found) == ["rows", "tiles"]
    assert timed == 3 * timed[:2] and timed[0] is not timed[1]
    assert found["rows"] == Timing(30.0, 9.0, 91.0, 5), "10, 90 and 30"
    assert found["tiles"] == Timing(40.0, 19.0, 61.0, 5), "20, 40 and 60"


@pytest.mark.parametrize("block_n, block_k", [(4, 48), (3, 32)])
def test_tiles_must_divide_the_weight(block_n, block_k):
    """A tile at the edge would read another's bytes, or none."""
    with pytest.raises(ValueError, match="expected tiles that divide"):
        weights.time_layouts(shape_of(2), Tiles(block_n=block_n, block_k=block_k, num_warps=4, num_stages=3))


def test_it_needs_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert weights.main([]) == 2
    err = capsys.readouterr().err
    assert err == "error: the comparison of weight layouts needs an NVIDIA GPU, and there is none here\n"
