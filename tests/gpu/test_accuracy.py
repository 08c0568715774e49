"""Compiled kernels against the float64 oracle, beside the unfused XLA path, in guarded buffers.

The RMS error over many draws is at most 1.5 times that of XLA on the same operands. Shapes are ragged: a compiled
kernel reads and writes out of bounds where it forgets a mask, and interpret mode would not.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.attention.tiles import AttentionTiles
from pallas_kernels.common.checks import DTYPES
from pallas_kernels.common.launch import guarded
from pallas_kernels.common.stream_tiles import Tiles
from tests.pallas_kernels import inputs, oracle
from tests.pallas_kernels.compare import assert_close, assert_right_head, leaves
from tests.pallas_kernels.inputs import Layout

FLOOR = {"float32": 1e-6, "bfloat16": 0.0, "float16": 0.0}
"""RMS error, as a share of an array's RMS, that is always good enough in its dtype: in float32 (which a residual stream
and its squares are in any call) only the order of sums differs."""
TENSOR_CORE_FLOOR = FLOOR | {"float32": 2e-6}
"""Tensor cores round their sums in a way of their own: 1.1e-6 was seen."""

VECTORS = Tiles(block_n=4, block_k=256)
PIPELINED = Tiles(block_n=4, block_k=128, num_stages=4)
TENSOR_CORES = Tiles(block_n=16, block_k=64, num_stages=4, mma=True)
FORMS = {
    "vectors": (2, VECTORS),
    "pipelined": (1, PIPELINED),
    "tensor cores": (5, TENSOR_CORES),
    "many rows": (100, Tiles(block_n=32, block_k=64, num_stages=3, mma=True, block_m=64)),
    "weights first": (37, Tiles(block_n=64, block_k=64, num_warps=8, num_stages=3, mma=True, block_m=32, swap_ab=True)),
}
SPLIT = Tiles(block_n=64, block_k=64, num_stages=3, mma=True, block_m=64, swap_ab=True, splits=4)

WIDTH = 1000
"""Of x: no tile divides it."""
each_form = pytest.mark.parametrize("form", FORMS)
# Every pair of form and dtype whose kernel is another.
each_kernel = pytest.mark.parametrize(
    "form, dtype",
    [
        ("vectors", "bfloat16"),
        ("vectors", "float32"),
        ("pipelined", "bfloat16"),
        *(("tensor cores", d) for d in DTYPES),
        *((form, d) for form in ("many rows", "weights first") for d in ("bfloat16", "float32")),
    ],
)


def assert_accurate(calls, implementation, tiles):
    """`calls` are draws of one shape: each is within tolerance, all together are within 1.5 times XLA's error."""
    dtype = calls[0].shape.dtype
    kernel = jax.jit(calls[0].bind(implementation, tiles))
    xla = jax.jit(calls[0].bind("xla"))
    ours, theirs, scale = [], [], []
    for call in calls:
        expected = oracle.of(call)
        with guarded():
            result = kernel(**call.arrays)
        assert_close(result, expected, dtype)
        for errors, got in ((ours, leaves(result)), (theirs, leaves(xla(**call.arrays)))):
            errors.append([np.nanmean((g - e) ** 2) for g, e in zip(got, expected, strict=True)])
        scale.append([np.nanmean(e**2) for e in expected])
    ours, theirs, scale = (np.sqrt(np.mean(x, axis=0)) for x in (ours, theirs, scale))
    floor = TENSOR_CORE_FLOOR if getattr(tiles, "mma", False) else FLOOR
    floors = np.array([floor[x.dtype.name] for x in jax.tree.leaves(result) if x.dtype.name in floor])
    allowed = np.maximum(1.5 * theirs, floors * scale)
    assert np.all(ours <= allowed), f"RMS errors {ours}, XLA's {theirs}, of results {scale}"


@each_kernel
def test_projection(form, dtype, implementation, draws):
    rows, tiles = FORMS[form]
    calls = [
        inputs.projection(
            inputs.Values(seed), rows=rows, outputs=301, inputs=WIDTH, dtype=dtype, bias=form == "vectors"
        )
        for seed in range(draws)
    ]
    assert_accurate(calls, implementation, tiles)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["projection", "deferred norm", "qkv", "QK-norm"])
def test_a_split_reduction_axis(op, dtype, implementation, draws):
    calls = []
    for draw in map(inputs.Values, range(draws)):
        if op in ("projection", "deferred norm"):
            norm = op == "deferred norm"
            call = inputs.projection(draw, rows=70, outputs=1300, inputs=1024, dtype=dtype, bias=True, norm=norm)
        else:
            call = inputs.qkv(
                draw, rows=70, width=1024, heads=6, kv_heads=2, head_dim=80, padding=9, layout=Layout(6, 9),
                sequences=20, dtype=dtype, bias=True, qk_norm=op == "QK-norm",
            )  # fmt: skip
        calls.append(call)
    assert_accurate(calls, implementation, SPLIT)


@each_kernel
def test_gate_up(form, dtype, implementation, draws):
    rows, tiles = FORMS[form]
    options = dict(activation="gelu_tanh", norm_offset=1.0, bias=True) if form == "vectors" else {}
    calls = [
        inputs.gate_up(inputs.Values(seed), rows=rows, width=WIDTH, features=301, dtype=dtype, **options)
        for seed in range(draws)
    ]
    assert_accurate(calls, implementation, tiles)


@each_form
@pytest.mark.parametrize("op", ["gate_up", "head_logits"])
def test_float32_rows_of_narrow_weights(op, form, implementation, draws):
    rows, tiles = FORMS[form]
    calls = []
    for draw in map(inputs.Values, range(draws)):
        if op == "gate_up":
            call = inputs.gate_up(draw, rows=rows, width=WIDTH, features=301)
        else:
            call = inputs.head(draw, rows=rows, width=WIDTH, vocabulary=1003)
        calls.append(inputs.streamed(draw, call))
    assert_accurate(calls, implementation, tiles)


@each_kernel
def test_projection_into_a_deferred_norm(form, dtype, implementation, draws):
    rows, tiles = FORMS[form]
    calls = [
        inputs.projection(
            inputs.Values(seed), rows=rows, outputs=301, inputs=WIDTH, dtype=dtype, norm=True, norm_offset=1.0
        )
        for seed in range(draws)
    ]
    assert_accurate(calls, implementation, tiles)


@each_kernel
def test_gate_up_of_a_deferred_norm(form, dtype, implementation, draws):
    rows, tiles = FORMS[form]
    calls = []
    for draw in map(inputs.Values, range(draws)):
        call = inputs.gate_up(draw, rows=rows, width=WIDTH, features=301, dtype=dtype)
        calls.append(inputs.deferred(draw, call))
    assert_accurate(calls, implementation, tiles)


@each_kernel
def test_head_logits(form, dtype, implementation, draws):
    rows, tiles = FORMS[form]
    options = dict(soft_cap=5.0, bias=True) if form == "vectors" else {}
    calls = [
        inputs.head(inputs.Values(seed), rows=rows, width=WIDTH, vocabulary=1003, dtype=dtype, **options)
        for seed in range(draws)
    ]
    assert_accurate(calls, implementation, tiles)


@each_form
def test_head(form, implementation, draws):
    rows, tiles = FORMS[form]
    for seed in range(draws):
        call = inputs.head(inputs.Values(seed), pk.head, rows=rows, width=WIDTH, vocabulary=1003, dtype="float32")
        assert_right_head(call, tiles, implementation)


@each_form
def test_head_of_equal_and_odd_logits(form, implementation):
    _, tiles = FORMS[form]
    base = np.linspace(-3.0, 1.0, 1003).astype(np.float32)
    for changes in ({3: 5.0, 700: 5.0}, {900: np.nan, 20: np.nan}, dict.fromkeys(range(1003), -np.inf)):
        logits = base.copy()
        logits[list(changes)] = list(changes.values())
        weight = pk.DenseWeight(values=jnp.zeros((1003, WIDTH)), bias=jnp.asarray(logits))
        with guarded():
            token, value = pk.head(
                jnp.ones((2, WIDTH)), jnp.ones(WIDTH), weight, implementation=implementation, tiles=tiles
            )
        expected = int(np.argmax(logits))  # XLA's own argmax on a GPU does not take the first NaN
        assert token.tolist() == [expected] * 2
        np.testing.assert_array_equal(value, logits[[expected] * 2])


HEADS = {"grouped": (6, 2), "multi-head": (3, 3), "multi-query": (7, 1)}
QKV = {
    "vectors, contiguous": ("vectors", dict(rotary_dim=None, layout=Layout(50))),
    "pipelined, paged, no rotation": ("pipelined", dict(rotary_dim=0, layout=Layout(6, 9))),
    "pipelined, paged, bias": ("pipelined", dict(rotary_dim=None, layout=Layout(6, 9), bias=True)),
    "tensor cores, paged, partial rotation": ("tensor cores", dict(rotary_dim=40, layout=Layout(16, 4), bias=True)),
    "many rows, paged": ("many rows", dict(rotary_dim=None, layout=Layout(16, 4))),
    "weights first": ("weights first", dict(rotary_dim=None, layout=Layout(50))),
}


@pytest.mark.parametrize(
    "case, dtype", [*((case, "bfloat16") for case in QKV), *((list(QKV)[3], d) for d in DTYPES[1:])]
)
def test_qkv(case, dtype, implementation, draws):
    form, options = QKV[case]
    rows, tiles = FORMS[form]
    calls = [
        inputs.qkv(
            inputs.Values(seed), rows=rows, width=WIDTH, heads=6, kv_heads=2, head_dim=80, padding=rows // 2,
            dtype=dtype, **options,
        )
        for seed in range(draws)
    ]  # fmt: skip
    assert_accurate(calls, implementation, tiles)


@pytest.mark.parametrize("head_dim", [80, 128])
@pytest.mark.parametrize(
    "tiles",
    [None, Tiles(block_n=64, block_k=32), Tiles(block_n=64, block_k=8, num_warps=2, num_stages=3)],
    ids=["heuristic", "vectors", "pipelined"],
)
def test_qkv_with_qk_norm(head_dim, tiles, implementation, draws):
    calls = [
        inputs.qkv(
            inputs.Values(seed), rows=2, width=1000, heads=3, kv_heads=1, head_dim=head_dim, layout=Layout(8, 3),
            qk_norm=True, norm_offset=1.0, bias=True,
        )
        for seed in range(draws)
    ]  # fmt: skip
    assert_accurate(calls, implementation, tiles)


ATTENTION = {
    "one split, contiguous": (AttentionTiles(block_s=32, splits=1), dict(layout=Layout(300))),
    "a block each": (AttentionTiles(block_s=32, splits=8, num_stages=1), dict(layout=Layout(250))),
    "pages of blocks": (AttentionTiles(block_s=32, splits=4, num_stages=3), dict(layout=Layout(64, 9), sequences=2)),
    "blocks of pages": (AttentionTiles(block_s=64, splits=4), dict(layout=Layout(16, 40), soft_cap=3.0)),
    "pages across blocks": (AttentionTiles(block_s=64, splits=2), dict(layout=Layout(48, 13), padding=1)),
    "window": (AttentionTiles(block_s=32, splits=4), dict(layout=Layout(64, 9), window=100)),
}


@pytest.mark.parametrize(
    "case, dtype",
    [*((case, "bfloat16") for case in ATTENTION), *((case, d) for case in list(ATTENTION)[1:3] for d in DTYPES[1:])],
)
def test_attention(case, dtype, implementation, draws):
    tiles, options = ATTENTION[case]
    calls = [
        inputs.attention(inputs.Values(seed), rows=3, heads=6, kv_heads=2, head_dim=80, dtype=dtype, **options)
        for seed in range(draws)
    ]
    assert_accurate(calls, implementation, tiles)


# 16 tokens of 3 heads, padded to 4, are the rows of one product of four warps.
@pytest.mark.parametrize("tokens, block_t", [(2, 2), (5, 4), (16, 16)])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_of_several_tokens(case, tokens, block_t, implementation, draws):
    tiles, options = ATTENTION[case]
    calls = [
        inputs.attention(inputs.Values(seed), rows=3, heads=6, kv_heads=2, head_dim=80, tokens=tokens, **options)
        for seed in range(draws)
    ]
    assert_accurate(calls, implementation, dataclasses.replace(tiles, block_t=block_t))


@pytest.mark.parametrize(
    "heads, head_dim",
    [*(("grouped", h) for h in (8, 64, 96, 128, 256)), ("multi-head", 64), ("multi-query", 64)],
)
def test_attention_heads(heads, head_dim, implementation, draws):
    heads, kv_heads = HEADS[heads]
    calls = [
        inputs.attention(
            inputs.Values(seed), rows=2, heads=heads, kv_heads=kv_heads, head_dim=head_dim, layout=Layout(32, 9)
        )
        for seed in range(draws)
    ]
    assert_accurate(calls, implementation, AttentionTiles(block_s=32, splits=2))


@pytest.mark.parametrize(
    "op, rows", [("qkv", 1), ("qkv", 8), ("attention", 1), ("out", 1), ("gate_up", 8), ("down", 1)]
)
def test_a_model_with_heuristic_tiles(op, rows, implementation):
    if implementation == "interpret":
        pytest.skip("too large to interpret")
    assert_accurate([inputs.of_model(inputs.Values(0), "llama-3.2-1b", op, rows=rows)], implementation, None)
