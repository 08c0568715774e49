"""Packing and its inverse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.common.weights import rotary_pairs
from tests.pallas_kernels.marks import slow


def array(*shape):
    return jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)


@pytest.mark.parametrize("bias", [None, array(7)])
def test_linear(bias):
    kernel = array(5, 7)
    chex.assert_trees_all_equal(pk.unpack_linear(pk.pack_linear(kernel, bias)), (kernel, bias))


def test_linear_of_heads():
    kernel = array(3, 4, 7)  # [N, H, D]
    packed = pk.pack_linear(kernel)
    assert packed.values.shape == (7, 12)
    chex.assert_trees_all_equal(packed.values[2], kernel[:, :, 2].reshape(-1))


@pytest.mark.parametrize("biases", [(None, None), (array(6), -array(6))])
def test_gate_up(biases):
    gate, up = array(5, 6), -array(5, 6)
    packed = pk.pack_gate_up(gate, up, *biases)
    chex.assert_trees_all_equal(pk.unpack_gate_up(packed), (gate, up, *biases))
    chex.assert_trees_all_equal(packed.values[4], jnp.stack([gate[:, 4], up[:, 4]]))


@pytest.mark.parametrize("rotary_dim", [None, 0, 2, 4, 6, 8])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("heads, kv_heads", [(6, 2), slow(3, 3), slow(4, 1)])
def test_qkv(heads, kv_heads, bias, rotary_dim):
    sizes = (heads, kv_heads, kv_heads)
    weights = tuple(array(5, n, 8) + 1000 * i for i, n in enumerate(sizes))
    biases = tuple(array(n, 8) + 1000 * i if bias else None for i, n in enumerate(sizes))
    packed = pk.pack_qkv(*weights, *biases, rotary_dim=rotary_dim)
    assert packed.values.shape == ((heads + 2 * kv_heads) * 4, 2, 5)
    unpacked = pk.unpack_qkv(packed, heads, kv_heads)
    chex.assert_trees_all_equal(unpacked, (*weights, *biases))


def test_rotated_dimensions_lie_together():
    assert rotary_pairs(8) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert rotary_pairs(8, 4) == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert rotary_pairs(4, 0) == [(0, 2), (1, 3)]
    wq = array(3, 1, 8)
    packed = pk.pack_qkv(wq, wq, wq, rotary_dim=4)
    chex.assert_trees_all_equal(packed.values[2], jnp.stack([wq[:, 0, 4], wq[:, 0, 6]]))


def test_weights_are_pytrees():
    weight = pk.pack_linear(array(5, 7), array(7))
    assert [x.shape for x in jax.tree.leaves(weight)] == [(7, 5), (7,)]
    chex.assert_trees_all_equal(jax.jit(lambda w: w)(weight), weight)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: pk.pack_gate_up(array(5, 6), array(5, 7)), "^up: "),
        (lambda: pk.pack_gate_up(array(5, 6), array(5, 6), array(6)), "^gate_bias, up_bias: "),
        (
            lambda: pk.pack_qkv(array(5, 2, 8), array(5, 2, 8), array(5, 1, 8)),
            r"^wv: expected shape \[5, 2, 8\], that of wk",
        ),
        (lambda: pk.pack_qkv(array(5, 2, 8), array(5, 2, 4), array(5, 2, 4)), r"^wk: expected shape \[5, K, 8\]"),
        (lambda: pk.pack_qkv(*[array(5, 16)] * 3), r"^wq: expected shape \[D, N, H\], got \[5, 16\]"),
        (lambda: pk.pack_qkv(array(5, 3, 8), array(5, 2, 8), array(5, 2, 8)), "^wk: expected a number of heads that"),
        (lambda: pk.pack_linear(array(5)), r"^kernel: expected shape \[I, O\] or \[N, H, D\], got \[5\]"),
        (lambda: pk.pack_linear(array(5, 6), array(5)), r"^bias: expected shape \[6\]"),
        (lambda: pk.pack_gate_up(array(2, 5, 6), array(2, 5, 6)), r"^gate: expected shape \[D, F\]"),
        (
            lambda: pk.unpack_gate_up(pk.pack_linear(array(5, 6))),
            r"^weight: expected shape \[F, 2, D\] from `pack_gate_up`",
        ),
        (lambda: pk.unpack_linear(pk.pack_gate_up(array(5, 6), array(5, 6))), r"^weight: expected shape \[O, I\]"),
        (lambda: pk.pack_qkv(*[array(5, 2, 8)] * 3, array(2, 8)), "^bq, bk, bv: "),
        (lambda: pk.pack_qkv(*[array(5, 2, 7)] * 3), "^rotary_dim: "),
        (lambda: pk.pack_qkv(*[array(5, 2, 8)] * 3, rotary_dim=3), "^rotary_dim: "),
        (lambda: pk.pack_qkv(*[array(5, 2, 8)] * 3, rotary_dim=10), "^rotary_dim: "),
        (lambda: pk.unpack_qkv(pk.pack_qkv(*[array(5, 2, 8)] * 3), 7, 1), "^num_heads, num_kv_heads: "),
    ],
)
def test_errors_name_the_argument(make, match):
    with pytest.raises(ValueError, match=match):
        make()
