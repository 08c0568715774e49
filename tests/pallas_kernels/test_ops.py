"""What `OPS` says of a call: its problem, its tiles, and what it costs at least."""

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels as pk
from tests.pallas_kernels import inputs
from tests.pallas_kernels.inputs import Layout

NAMES = ("qkv", "attention", "out", "gate_up", "down", "head", "head_logits")


def call_of(op, rows=1, draw=None):
    return inputs.of_model(draw or inputs.Shapes(), "llama-3.2-1b", op, rows=rows)


def test_every_op_is_known():
    assert tuple(sorted(pk.OPS)) == tuple(sorted(NAMES))
    assert all(callable(getattr(pk, name)) for name in pk.OPS)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("op", NAMES)
def test_the_shape_of_a_call(op, rows):
    """Of arrays that are only described: the shape that its tiles are chosen by."""
    call = call_of(op, rows)
    assert pk.OPS[op].shape(**call.arrays, **call.options) == call.shape


@pytest.mark.parametrize("device", pk.DEVICES.values(), ids=lambda device: device.key)
@pytest.mark.parametrize("op", NAMES)
def test_chosen_and_default_tiles_are_feasible_and_of_the_space(op, device):
    known, shape = pk.OPS[op], call_of(op).shape
    for tiles in (known.chosen_tiles(shape, device), known.default_tiles(shape, device)):
        assert known.feasible(tiles, shape, device)
    assert any(known.feasible(tiles, shape, device) for tiles in known.search_space(shape))


WIDTH, FEATURES, VOCABULARY, HEADS, KV_HEADS, HEAD_DIM = 2048, 8192, 128256, 32, 8, 64
BYTES = {
    "qkv": 2 * (WIDTH * (HEADS + 2 * KV_HEADS) * HEAD_DIM + 2 * WIDTH + (HEADS + 2 * KV_HEADS) * HEAD_DIM),
    "attention": 2 * (2 * KV_HEADS * 2048 * HEAD_DIM + 2 * HEADS * HEAD_DIM),
    "out": 2 * (WIDTH * HEADS * HEAD_DIM + HEADS * HEAD_DIM + 2 * WIDTH),
    "gate_up": 2 * (2 * WIDTH * FEATURES + 2 * WIDTH + FEATURES),
    "down": 2 * (WIDTH * FEATURES + FEATURES + 2 * WIDTH),
    "head": 2 * (WIDTH * VOCABULARY + 2 * WIDTH) + 8,
    "head_logits": 2 * (WIDTH * VOCABULARY + 2 * WIDTH) + 4 * VOCABULARY,
}


@pytest.mark.parametrize("op", NAMES)
def test_what_a_call_must_move(op):
    """One row of bf16: weights, norm and activations in, results out, each once; the whole cache where lengths are
    not known."""
    call = call_of(op)
    assert pk.OPS[op].cost(**call.arrays, **call.options).bytes == BYTES[op]


def test_a_residual_stream_in_float32_and_a_deferred_norm_move_more():
    x, residual = jax.ShapeDtypeStruct((1, 512), jnp.bfloat16), jax.ShapeDtypeStruct((1, 64), jnp.float32)
    weight = pk.DenseWeight(values=jax.ShapeDtypeStruct((64, 512), jnp.bfloat16))
    norm = jax.ShapeDtypeStruct((64,), jnp.bfloat16)
    cost = pk.OPS["out"].cost
    read = 2 * (64 * 512 + 512)
    assert cost(x, weight).bytes == read + 2 * 64
    assert cost(x, weight, residual=residual, out_dtype="float32").bytes == read + 8 * 64
    assert cost(x, weight, residual=residual, norm=norm).bytes == read + (4 + 2 + 4 + 2) * 64
    assert cost(x, weight).operations == 2 * 64 * 512


def test_attention_counts_the_keys_that_it_sees():
    call = inputs.attention(inputs.Values(0), rows=2, heads=4, kv_heads=2, head_dim=8, layout=Layout(64))
    lengths = jnp.array([10, 40], jnp.int32)
    arrays = call.arrays | dict(lengths=lengths)
    queries = 2 * 2 * 2 * 4 * 8
    assert pk.OPS["attention"].cost(**arrays).bytes == queries + 2 * 2 * 50 * 2 * 8
    assert pk.OPS["attention"].cost(**arrays, window=16).bytes == queries + 2 * 2 * 26 * 2 * 8


def test_floor():
    assert pk.Cost(bytes=4_000_000, operations=0).floor_us(4000) == pytest.approx(1.0)
