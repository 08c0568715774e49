"""Every wrong argument is a ValueError or TypeError of one line that begins with the argument's name."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.attention.tiles import AttentionTiles
from pallas_kernels.common.stream_tiles import Tiles
from tests.pallas_kernels import inputs
from tests.pallas_kernels.inputs import Layout

DRAW = inputs.Values(0)
PAGED = Layout(8, 3)
CALLS = {
    "qkv": inputs.qkv(
        DRAW, rows=2, width=24, heads=4, kv_heads=2, head_dim=8, layout=PAGED, bias=True, qk_norm=True, dtype="float32"
    ),
    "qkv, contiguous": inputs.qkv(
        DRAW, rows=2, width=24, heads=4, kv_heads=2, head_dim=8, layout=Layout(8), dtype="float32"
    ),
    "attention": inputs.attention(
        DRAW, rows=2, heads=4, kv_heads=2, head_dim=8, layout=PAGED, counters=True, dtype="float32"
    ),
    "attention, contiguous": inputs.attention(
        DRAW, rows=2, heads=4, kv_heads=2, head_dim=8, layout=Layout(8), dtype="float32"
    ),
    "out": inputs.projection(DRAW, pk.out, rows=2, outputs=24, inputs=32, bias=True, dtype="float32"),
    "down": inputs.projection(DRAW, pk.down, rows=2, outputs=24, inputs=32, bias=True, dtype="float32"),
    "gate_up": inputs.gate_up(DRAW, rows=2, width=24, features=20, bias=True, dtype="float32"),
    "head": inputs.head(DRAW, pk.head, rows=2, width=24, vocabulary=20, bias=True, dtype="float32"),
    "head_logits": inputs.head(DRAW, pk.head_logits, rows=2, width=24, vocabulary=20, bias=True, dtype="float32"),
}
STREAMS = ("qkv", "out", "down", "gate_up", "head", "head_logits")


def field(name, change):
    """Changes a field of a weight or cache."""
    return lambda value: dataclasses.replace(value, **{name: change(getattr(value, name))})


def half(x):
    return x.astype(jnp.bfloat16)


def integer(x):
    return x.astype(jnp.int32)


def longer(x):
    return jnp.concatenate([x, x[:1]])


def wider(x):
    return jnp.concatenate([x, x[..., :1]], axis=-1)


def none_left(x):
    return x[:0]


def deeper(x):
    return x[None]


def at_first(value):
    return lambda x: x.at[(0,) * x.ndim].set(value)


def to(value):
    return lambda _: value


SHAPES_OF_X = [("x", none_left, "x"), ("x", deeper, "x")]
WEIGHTS = [
    ("x", half, "weight"),
    ("weight", field("values", integer), "weight"),
    ("weight", field("values", wider), "weight"),
    ("weight", field("values", deeper), "weight"),
    ("weight", field("bias", longer), "weight.bias"),
    ("x", integer, "x"),
]
NARROW = [("weight", field("values", half), "weight")]  # what is normed first may be float32 nevertheless
NORMED = [("norm", wider, "norm"), ("norm", deeper, "norm")]
NOT_NUMBERS = (None, "1e-5", True, jnp.float32(1e-5), float("nan"), float("inf"), 10**400)
NORM = [
    *(("eps", to(value), "eps") for value in (0, -1, *NOT_NUMBERS)),
    *(("norm_offset", to(value), "norm_offset") for value in NOT_NUMBERS),
]
LATER = [
    ("prefetch", to(jnp.ones((4, 4))), "prefetch"),
    *(("prefetch_bytes", to(value), "prefetch_bytes") for value in (None, -1, 1.5, True, 2**31)),
]
UNPACKED = [
    ("weight", lambda w: w.values, "weight: expected a DenseWeight from `pack_"),
    ("weight", to(None), "weight: expected a DenseWeight from `pack_"),
    ("weight", field("values", lambda v: v.reshape(-1)), "weight: expected shape"),
    ("weight", field("values", lambda v: v.tolist()), "weight: expected an array"),
    ("weight", field("bias", integer), "weight.bias"),
]
CACHE = [
    ("cache", field("k", lambda k: k.astype(jnp.int8)), "cache.k_scale: expected float32"),
    ("cache", lambda c: pk.KVCache(k=c.k.astype(jnp.int16), v=c.v.astype(jnp.int16)), "cache.k: expected dtype"),
    ("cache", field("v_scale", lambda _: jnp.ones(2)), "cache.v_scale: expected None"),
    ("cache", lambda c: (c.k, c.v), "cache: expected a KVCache"),
    ("page_table", to([[0]]), "page_table: expected an array"),
    ("page_table", lambda x: x[:, :0], "page_table: expected shape"),
    ("cache", field("k", deeper), "cache.k"),
    ("cache", field("v", longer), "cache.v"),
    ("cache", field("v", half), "cache.v"),
    ("page_table", lambda x: x.astype(jnp.float32), "page_table"),
    ("page_table", at_first(99), "page_table"),
    ("page_table", at_first(-2), "page_table"),
    ("page_table", lambda x: x[0], "page_table"),
    ("sequence", longer, "sequence"),
    ("sequence", at_first(2), "sequence"),
    ("sequence", at_first(-1), "sequence"),
    ("sequence", lambda x: x.astype(jnp.float32), "sequence"),
]
WRONG = {
    "qkv": [
        *SHAPES_OF_X, *WEIGHTS, *NORMED, *CACHE, *NORM, *LATER, *UNPACKED,
        ("weight", lambda w: dataclasses.replace(w, rotary_dim=4), "rope: expected 2 columns"),
        ("weight", lambda w: dataclasses.replace(w, rotary_dim=3), "rotary_dim"),
        ("positions", lambda x: x.tolist(), "positions: expected an array"),
        ("positions", lambda x: x[:, None], "positions: expected shape"),
        ("rope", lambda r: r[0], "rope: expected a pair"),
        ("rope", lambda r: [t.astype(jnp.bfloat16) for t in r], r"rope\[0\] \(cos\): expected dtype float32"),
        ("rope", lambda r: [t[:2] for t in r], "rope: expected a row for each position"),
        ("rope", lambda r: [t[:, :2] for t in r], "rope: expected 4 columns"),
        ("q_norm", integer, "q_norm: expected a floating-point dtype"),
        ("weight", field("values", longer), "weight"),
        ("weight", lambda w: pk.DenseWeight(values=w.values[:16]), "weight"),  # no query head is left
        ("weight", lambda w: pk.DenseWeight(values=w.values[:28]), "weight"),  # 3 query heads on 2 kv heads
        ("cache", lambda c: pk.KVCache(k=c.k[..., :7], v=c.v[..., :7]), "weight"),
        ("positions", longer, "positions"),
        ("positions", at_first(24), "positions"),
        ("positions", at_first(-2), "positions"),
        ("positions", lambda x: x.astype(jnp.float32), "positions"),
        ("rope", lambda r: (r[0], r[1][:, :2]), r"rope\[1\]"),
        ("rope", lambda r: (r[0][0], r[1][0]), r"rope\[0\]"),
        ("rope", lambda r: tuple(jnp.concatenate([t, t], axis=1) for t in r), "rope"),
        ("q_norm", to(None), "q_norm, k_norm"),
        ("k_norm", to(None), "q_norm, k_norm"),
        ("q_norm", wider, "q_norm"),
        ("k_norm", wider, "k_norm"),
        ("tiles", to(Tiles(block_n=2, block_k=16)), "tiles: block_n"),  # QK-norm needs a whole head
    ],
    "qkv, contiguous": [("positions", at_first(8), "positions")],
    "attention": [
        *CACHE,
        ("q", lambda q: q[None, None], "q"), ("q", deeper, "sequence"),
        ("q", none_left, "q"), ("q", integer, "q"), ("q", half, "cache.k"),
        ("q", wider, "cache.k"), ("q", lambda q: q[:, :3], "q"),
        ("lengths", longer, "lengths"), ("lengths", at_first(25), "lengths"), ("lengths", at_first(-1), "lengths"),
        ("lengths", lambda x: x.astype(jnp.float32), "lengths"),
        ("counters", at_first(1), "counters"), ("counters", longer, "counters"), *LATER,
        *(("scale", to(value), "scale") for value in (0.0, -1, *NOT_NUMBERS[1:])),
        *(("soft_cap", to(value), "soft_cap") for value in (0.0, -1, *NOT_NUMBERS[1:])),
        *(("window", to(value), "window") for value in (0, -1, 2.5, True, "8", jnp.int32(8), 2**31)),
    ],
    "attention, contiguous": [("lengths", at_first(9), "lengths")],
    "out": [
        *SHAPES_OF_X[:1], *WEIGHTS, *NARROW, *LATER, *UNPACKED,
        ("norm_offset", to(float("nan")), "norm_offset"), ("norm", to(jnp.ones((24,), int)), "norm"),
        ("x", lambda x: x.tolist(), "x: expected an array"), ("out_dtype", to(jnp.ones(3)), "out_dtype"),
         ("residual", longer, "residual"), ("residual", half, "residual"),
        ("out_dtype", to("bfloat16"), "out_dtype"), ("out_dtype", to("wide"), "out_dtype"),
    ],
    "down": [*SHAPES_OF_X, *WEIGHTS, *NARROW, ("residual", wider, "residual"), ("residual", half, "residual")],
    "gate_up": [
        *SHAPES_OF_X, *WEIGHTS, *NORMED, *NORM, *LATER, *UNPACKED,
        ("weight", field("values", lambda v: v[:, :1]), "weight"),
        ("activation", to("relu"), "activation"), ("activation", to(None), "activation"),
        ("norm", integer, "norm: expected a floating-point dtype"),
    ],
    "head": [*SHAPES_OF_X, *WEIGHTS, *NORMED, *NORM, *UNPACKED, ("soft_cap", to(0.0), "soft_cap")],
    "head_logits": [*SHAPES_OF_X, *WEIGHTS, *NORMED, ("soft_cap", to(-1.0), "soft_cap")],
}  # fmt: skip


def run(name, **changes):
    call = CALLS[name]
    return call.function(**(call.arrays | call.options | dict(implementation="xla") | changes))


@pytest.mark.parametrize(
    "name, argument, change, match",
    [(name, *case) for name, cases in WRONG.items() for case in cases],
    ids=[f"{n}-{a}-{i}" for n, cases in WRONG.items() for i, (a, _, _) in enumerate(cases)],
)
def test_wrong_arguments(name, argument, change, match):
    value = (CALLS[name].arrays | CALLS[name].options).get(argument)
    with pytest.raises((ValueError, TypeError), match=f"^{match}") as error:
        run(name, **{argument: change(value)})
    assert "\n" not in str(error.value)


MATRIX, HEADS, ONES = jnp.ones((2, 4)), jnp.ones((5, 2, 8)), jnp.ones(4)
CACHED = pk.KVCache.zeros(2, 2, 4, 8, "float32")
HERE = dict(positions=jnp.zeros(2, jnp.int32), sequence=jnp.arange(2), page_table=jnp.array([[0], [1]]))
DEVICE = pk.DEVICES["h100"]
GOOD = Tiles(block_n=16, block_k=16)
MAKERS_OF_FIXED_POINT = ("attention", "out", "gate_up", "down")
OPS = {
    name: (
        call.function,
        call.arrays
        | call.options
        | dict(implementation="xla", tiles=None)
        | (dict(fixed_point=None) if name in MAKERS_OF_FIXED_POINT else {}),
    )
    for name, call in CALLS.items()
    if "contiguous" not in name
}
FUNCTIONS = OPS | {
    "activate": (pk.activate, dict(name="silu", x=MATRIX)),
    "attention_counters": (pk.attention_counters, dict(rows=1, kv_heads=2, tokens=1)),
    "defer_norm": (pk.defer_norm, dict(rows=MATRIX, weight=ONES, offset=0.0, dtype="float32", part=2)),
    "makes_fixed_point": (functools.partial(pk.makes_fixed_point, tiles=GOOD), dict(shape=CALLS["down"].shape)),
    "to_fixed_point": (pk.to_fixed_point, dict(x=jnp.ones((2, 16)), bits=16, dtype="float32")),
    "to_floats": (pk.to_floats, dict(x=pk.to_fixed_point(jnp.ones((2, 16))))),
    "find_device": (pk.find_device, dict(kind="h100")),
    "fixed_point_bits": (pk.fixed_point_bits, dict(op="down", weight=pk.pack_linear(MATRIX), rows=1)),
    "finish_norm": (pk.finish_norm, dict(x=MATRIX, weight=ONES, eps=1e-5, offset=0.0)),
    "pack_gate_up": (pk.pack_gate_up, dict(gate=MATRIX, up=MATRIX, gate_bias=ONES, up_bias=ONES)),
    "pack_linear": (pk.pack_linear, dict(kernel=MATRIX, bias=ONES)),
    "pack_qkv": (pk.pack_qkv, dict(wq=HEADS, wk=HEADS, wv=HEADS, bq=HEADS[0], bk=HEADS[0], bv=HEADS[0], rotary_dim=4)),
    "project": (pk.project, dict(x=MATRIX, weight=pk.pack_linear(MATRIX.T))),
    "resolve_implementation": (pk.resolve_implementation, dict(implementation="xla")),
    "rms_norm": (pk.rms_norm, dict(x=MATRIX, weight=ONES, eps=1e-5, offset=0.0)),
    "rotate": (pk.rotate, dict(x=HEADS[:2], positions=HERE["positions"], rope=(HEADS[0, :, :2], HEADS[0, :, :2]))),
    "top_k_top_p": (
        pk.top_k_top_p,
        dict(scaled=MATRIX, top_k=jnp.array([1, 4]), top_p=ONES[:2], implementation="xla", lanes=64),
    ),
    "unpack_gate_up": (pk.unpack_gate_up, dict(weight=pk.pack_gate_up(MATRIX, MATRIX))),
    "unpack_linear": (pk.unpack_linear, dict(weight=pk.pack_linear(MATRIX))),
    "unpack_qkv": (pk.unpack_qkv, dict(weight=pk.pack_qkv(*[HEADS] * 3), num_heads=2, num_kv_heads=2)),
    "KVCache.zeros": (pk.KVCache.zeros, dict(pages=1, kv_heads=1, page_size=4, head_dim=8, dtype="float32")),
    "KVCache.write": (CACHED.write, dict(k=HEADS[:2], v=HEADS[:2], **HERE)),
    "KVCache.capacity": (CACHED.capacity, dict(page_table=HERE["page_table"])),
    "Op.search_space": (pk.OPS["down"].search_space, dict(shape=CALLS["down"].shape)),
    "Op.chosen_tiles": (pk.OPS["attention"].chosen_tiles, dict(shape=CALLS["attention"].shape, device=DEVICE)),
    "Op.default_tiles": (pk.OPS["out"].default_tiles, dict(shape=CALLS["out"].shape, device=DEVICE)),
    "Cost.floor_us": (pk.Cost(1, 1).floor_us, dict(gbps=1.0)),
}
NEVER_RIGHT = {
    "object": object(), "dict": {}, "list": [1, 2], "type": int, "True": True, "nan": float("nan"), "inf": float("inf"),
    "huge": 10**400, "complex": jnp.ones((1,) * 5, jnp.complex64), "key": jax.random.key(0), "text": np.array(["a"]),
    "weight of a list": pk.DenseWeight(values=[1]), "cache of numbers": pk.KVCache(k=1, v=None),
    "rows of numbers": pk.DeferredNorm(x=1, squares=None),
    "fixed point of numbers": pk.FixedPointRows(numbers=1, runs=None, dtype="float32"),
    "fixed point of an axis": pk.FixedPointRows(numbers=jnp.ones(16, jnp.int8), runs=None, dtype="float32"),
    "rope without sin": (MATRIX, None),
    "tiles of a fraction": Tiles(block_n=2.5, block_k=16), "tiles of text": Tiles(block_n=16, block_k=16, mma="yes"),
    "stages of a fraction": Tiles(block_n=16, block_k=16, num_stages=1.5),
}  # fmt: skip


@pytest.mark.parametrize("function, parameter", [(name, p) for name, (_, given) in FUNCTIONS.items() for p in given])
def test_what_is_never_right(function, parameter):
    """Of a wrong type, rank or value altogether, whatever the parameter is."""
    call, given = FUNCTIONS[function]
    for description, value in NEVER_RIGHT.items():
        with pytest.raises((ValueError, TypeError), match=rf"^{parameter}\b.*: ") as error:
            call(**(given | {parameter: value}))
            pytest.fail(f"{description} was taken")
        assert "\n" not in str(error.value) and len(str(error.value)) < 200


FIXED: Any = pk.to_fixed_point(jnp.ones((2, 16)))


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: pk.to_fixed_point(jnp.ones((2, 16)), 12), "bits: expected None, 16 or 8, got 12"),
        (lambda: pk.to_fixed_point(jnp.ones((2, 16)), None), "bits: expected 16 or 8, got None"),
        (lambda: pk.to_fixed_point(jnp.ones((2, 17))), "x: expected a multiple of 16 columns, got 17"),
        (lambda: pk.to_fixed_point(jnp.ones((2, 16), jnp.int32)), "x: expected a floating-point dtype, got int32"),
        (lambda: pk.to_fixed_point(jnp.ones((2, 16)), dtype="int8"), "dtype: expected bfloat16 .* got int8"),
        (lambda: pk.to_fixed_point(FIXED), "x: expected an array, got FixedPointRows"),
        (lambda: pk.to_floats(jnp.ones((2, 16), jnp.int32)), "x: expected a floating-point dtype, got int32"),
        (
            lambda: pk.to_floats(jax.tree.map(lambda array: array[None], FIXED)),
            r"x.numbers: expected shape \[B, planes, D\], got \[1, 2, 2, 16\]",
        ),
        (lambda: pk.finish_norm(FIXED, jnp.ones(16), 1e-5), "x: expected an array, got FixedPointRows"),
        (lambda: pk.rms_norm(FIXED, jnp.ones(16), 1e-5), "x: expected an array, got FixedPointRows"),
        (lambda: pk.project(FIXED, pk.pack_linear(jnp.ones((16, 4)))), "x: expected an array, got FixedPointRows"),
        (lambda: pk.makes_fixed_point(CALLS["down"].shape, AttentionTiles(block_s=16, splits=1)), "tiles: expected"),
        (lambda: pk.makes_fixed_point(CALLS["attention"].shape, GOOD), "tiles: expected a AttentionTiles, got Tiles"),
    ],
)
def test_rows_in_fixed_point(call, match):
    with pytest.raises((ValueError, TypeError), match=f"^{match}") as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["activate", "pack_qkv", "rotate", "KVCache.write", "Op.default_tiles"])
def test_functions_are_right_as_they_stand(name):
    function, given = FUNCTIONS[name]
    jax.block_until_ready(function(**given))


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_are_right_as_they_stand(name):
    jax.block_until_ready(run(name))


@pytest.mark.parametrize("name", ["qkv", "qkv, contiguous", "attention", "attention, contiguous"])
def test_more_rows_than_sequences_need_sequence(name):
    call = CALLS[name]
    with pytest.raises(ValueError, match=r"^sequence: needed"):
        rows = {
            n: jnp.concatenate([call.arrays[n]] * 2) for n in ("x", "q", "positions", "lengths") if n in call.arrays
        }
        run(name, **rows, sequence=None, **({"counters": None} if "counters" in call.arrays else {}))


@pytest.mark.parametrize("name", CALLS)
def test_implementations(name):
    with pytest.raises(ValueError, match=r"^implementation: expected"):
        run(name, implementation="cuda")
    if jax.default_backend() != "gpu":
        with pytest.raises(ValueError, match=r"^implementation: 'triton' needs"):
            run(name, implementation="triton")


BAD_TILES = [
    (dict(block_n=3), "tiles: block_n"),
    (dict(block_k=0), "tiles: block_k"),
    (dict(num_warps=3), "tiles: num_warps"),
    (dict(num_warps=64), "tiles: num_warps"),
    (dict(num_stages=0), "tiles: num_stages"),
    (dict(mma=True, block_n=8), "tiles: mma"),
    (dict(mma=True, block_k=8), "tiles: mma"),
    (dict(block_n=2**15, block_k=2**6), r"tiles: block_n \* block_k"),
    (dict(mma=True, block_n=512, block_k=1024), "tiles: shared memory"),
]


@pytest.mark.parametrize("name", STREAMS)
def test_tiles_of_streams(name):
    for changes, match in BAD_TILES:
        tiles = dataclasses.replace(GOOD, **changes)
        if name == "qkv" and tiles.block_n < 4:
            continue  # refused for QK-norm first
        with pytest.raises(ValueError, match=f"^{match}"):
            run(name, tiles=tiles)
    with pytest.raises(TypeError, match=r"^tiles: expected pallas_kernels.Tiles, got AttentionTiles"):
        run(name, tiles=AttentionTiles(block_s=16, splits=1))
    with pytest.raises(TypeError, match=r"^tiles: expected"):
        run(name, tiles=dict(block_n=16, block_k=16))


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(block_s=8), "tiles: block_s"),
        (dict(block_s=48), "tiles: block_s"),
        (dict(splits=3), "tiles: splits"),
        (dict(num_warps=64), "tiles: num_warps"),
        (dict(num_stages=0), "tiles: num_stages"),
        (dict(block_s=2**14), "tiles: shared memory"),
    ],
)
def test_tiles_of_attention(changes, match):
    with pytest.raises(ValueError, match=f"^{match}"):
        run("attention", tiles=dataclasses.replace(AttentionTiles(block_s=16, splits=2), **changes))


def test_tiles_of_another_op():
    with pytest.raises(TypeError, match=r"^tiles: expected pallas_kernels.AttentionTiles, got Tiles"):
        run("attention", tiles=GOOD)


def test_too_many_registers():
    call = inputs.projection(inputs.Shapes(), rows=1, outputs=64, inputs=8192)
    tiles = Tiles(block_n=16, block_k=1024, num_warps=1)
    with pytest.raises(ValueError, match=r"^tiles: registers"):
        jax.eval_shape(call.bind("interpret", tiles), **call.arrays)
