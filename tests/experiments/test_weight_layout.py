"""The reading kernel finds the same weights in every order of their bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import weight_layout
from pallas_kernels.common.tiles import StreamShape, Tiles

TILES = Tiles(block_n=4, block_k=32, num_warps=4, num_stages=3)


@pytest.mark.parametrize("groups", [1, 2])
def test_every_order_is_read_as_it_was_packed(groups):
    shape = StreamShape(rows=1, outputs=16, inputs=64, groups=groups, dtype="bfloat16", norm=True)
    w = jax.random.normal(jax.random.key(0), (16, groups, 64), jnp.bfloat16)
    blocks, steps = 16 // TILES.block_n, 64 // TILES.block_k
    packed = dict(
        rows=w,
        apart=w.swapaxes(0, 1),
        tiles=w.reshape(blocks, TILES.block_n * groups, steps, TILES.block_k).swapaxes(1, 2),
    )
    before = jnp.arange(float(blocks))
    truth = np.asarray(w, np.float32).reshape(blocks, -1).sum(1) + np.asarray(before)
    assert set(weight_layout.layouts(shape)) <= set(packed)
    for layout in weight_layout.layouts(shape):
        found = weight_layout.read(before, packed[layout].reshape(-1), shape, TILES, layout, interpret=True)
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-4, err_msg=layout)  # sums of 512 in another order
