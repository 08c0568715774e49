"""Rows in fixed point between kernels: those that make them, those that take them, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.common import launch
from pallas_kernels.common.fixed_point import to_fixed_point, to_floats
from pallas_kernels.common.quantised import RUN
from tests.pallas_kernels.common.test_quantised import normal
from tests.pallas_kernels.lowering import for_gpu
from tests.pallas_kernels.marks import slow

TILES = pk.Tiles(block_n=16, block_k=64, num_warps=1, num_stages=3)
RUNS_OF_TWO_PROGRAMS = dataclasses.replace(TILES, block_n=8)
STEP = {16: 2.0**-15, 8: 2.0**-7}
"""Of a number, at most, as part of the largest of its run."""


def assert_rounded(found, exact, bits, beside=0.0):
    """Rows in fixed point are within half of a step of exact ones, and their totals are right; beside: what those may
    be off by themselves, as part of the largest of a run."""
    assert isinstance(found, pk.FixedPointRows) and found.bits == bits and found.shape == exact.shape
    exact = np.asarray(exact, np.float64)
    largest = np.repeat(np.abs(exact.reshape(len(exact), -1, RUN)).max(axis=2), RUN, axis=1)
    stands_for = np.asarray(to_floats(dataclasses.replace(found, dtype=jnp.dtype(jnp.float32))), np.float64)
    assert np.all(np.abs(stands_for - exact) <= largest * (0.51 * STEP[bits] + beside))
    scales = np.asarray(found.runs[..., 0]).view(np.float32).astype(np.float64)
    sums = stands_for.reshape(*scales.shape, RUN).sum(axis=2)
    np.testing.assert_allclose(sums, scales * np.asarray(found.runs[..., 1]), atol=1e-5 * largest.max())


@pytest.mark.parametrize("bits", [16, 8])
def test_rounding(bits):
    x = normal(3, 5 * RUN) * jnp.logspace(-3, 3, 5 * RUN)
    assert_rounded(to_fixed_point(x, bits), x, bits)


def test_shape_and_bits_of_batches_of_rows():
    """As vmap returns them: still those of each batch."""
    found = jax.vmap(to_fixed_point)(normal(5 * 3, 2 * RUN).reshape(5, 3, 2 * RUN))
    assert found.numbers.shape == (5, 3, 2, 2 * RUN)
    assert found.shape == (3, 2 * RUN) and found.bits == 16
    floats = jax.vmap(to_floats)(found)
    assert floats.shape == (5, 3, 2 * RUN)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bits", [16, 8])
def test_what_is_not_finite_stays_so(bits, broken):
    x = normal(3, 3 * RUN)
    found = to_floats(to_fixed_point(x.at[1, RUN + 3].set(broken), bits))
    ordinary = to_floats(to_fixed_point(x, bits))
    assert not np.isfinite(found[1, RUN + 3])
    for row in (0, 2):
        np.testing.assert_array_equal(found[row], ordinary[row])
    for run in (0, 2):
        np.testing.assert_array_equal(*(rows[1].reshape(3, RUN)[run] for rows in (found, ordinary)))


def quantised(*shape, format="int4", group=32, activations=None, symmetric=True):
    return pk.quantise(
        normal(*shape) / shape[-1] ** 0.5, format, group=group, scale_dtype=jnp.bfloat16, activations=activations,
        symmetric=symmetric,
    )  # fmt: skip


@pytest.mark.parametrize(
    "op, rows, inputs, way",
    [
        ("out", 1, 208, dict(format="int8", group=None)),
        slow("down", 1, 416, dict()),
        slow("out", 2, 208, dict(format="int8", group=None)),
        slow("out", 1, 416, dict(symmetric=False)),
        slow("down", 1, 208, dict(format="int8", group=48, symmetric=False)),
        slow("down", 2, 416, dict(activations="int8")),
        slow("gate_up", 1, 416, dict()),
        slow("head_logits", 2, 208, dict(format="int8")),
    ],
)
def test_taken(op, rows, inputs, way):
    """The products are of the very numbers: as near as float32 sums are. Blocks hang over, and what lies behind is
    poisoned."""
    weight = quantised(*((41, 2, inputs) if op == "gate_up" else (41, inputs)), **way)
    x = to_fixed_point(normal(rows, inputs, seed=1), 8 if way.get("activations") else 16, dtype=jnp.bfloat16)
    floats = to_floats(dataclasses.replace(x, dtype=jnp.dtype(jnp.float32)))
    dense = pk.DenseWeight(values=pk.dequantise(weight))
    if op in ("out", "down"):
        given, plain, options = dict(x=x), dict(x=floats), dict(out_dtype=jnp.float32)
    else:
        squares = jnp.ones((rows, 3))
        given, plain = (dict(x=pk.DeferredNorm(x=one, squares=squares), norm=None) for one in (x, floats))
        options = {}
    function = getattr(pk, op)
    with launch.guarded():
        found = function(weight=weight, implementation="interpret", tiles=TILES, **given, **options)
    truth = function(weight=dense, implementation="xla", **plain, **options)
    tolerance = 1e-2 if op == "gate_up" else 2e-5  # its result is bfloat16
    np.testing.assert_allclose(np.float32(found), truth, rtol=tolerance, atol=tolerance * float(jnp.abs(truth).max()))


@pytest.mark.parametrize("implementation, bits", [("xla", 16), slow("interpret", 16), slow("interpret", 8)])
def test_gate_up_makes_them(implementation, bits):
    weight, x, norm = quantised(48, 2, 128), normal(2, 128, seed=1).astype(jnp.bfloat16), jnp.ones(128, jnp.bfloat16)
    with launch.guarded():
        found = pk.gate_up(x, norm, weight, fixed_point=bits, implementation=implementation, tiles=TILES)
    exact = pk.gate_up(x.astype(jnp.float32), norm, pk.DenseWeight(values=pk.dequantise(weight)), implementation="xla")
    beside = 2.0**-12 if implementation == "interpret" else 2.0**-5  # XLA multiplies rounded weights
    assert_rounded(found, exact, bits, beside)
    assert found.dtype == jnp.bfloat16


@pytest.mark.parametrize("rows, implementation", [slow(1, "interpret"), slow(2, "interpret"), (2, "xla")])
def test_projections_make_them(rows, implementation):
    """In a `DeferredNorm`; the sums beside them are what they are without."""
    weight, x, norm = quantised(48, 128), normal(rows, 128, seed=1), 1 + 0.1 * normal(48, seed=2)
    given = dict(
        x=x.astype(jnp.bfloat16), weight=weight, residual=normal(rows, 48, seed=3), norm=norm, norm_offset=1.0,
        implementation=implementation, tiles=TILES,
    )  # fmt: skip
    with launch.guarded():
        (found, total), (plain, same) = (pk.down(**given, fixed_point=bits) for bits in (16, None))
    np.testing.assert_array_equal(total, same)
    np.testing.assert_array_equal(found.squares, plain.squares)
    assert_rounded(found.x, total * (norm + 1.0), 16, 1e-6)
    assert found.x.dtype == jnp.bfloat16


@pytest.mark.parametrize("splits, implementation", [slow(1, "interpret"), slow(2, "interpret"), (1, "xla")])
def test_attention_makes_them(splits, implementation):
    q, (k, v) = normal(2, 6, 16), (normal(2, 2, 64, 16, seed=seed) for seed in (1, 2))
    tiles = pk.AttentionTiles(block_s=32, splits=splits, num_warps=1)
    given = dict(
        q=q, cache=pk.KVCache(k=k, v=v), lengths=jnp.array([64, 37]), implementation=implementation,
        tiles=tiles if implementation == "interpret" else None,
    )  # fmt: skip
    with launch.guarded():
        found, plain = (pk.attention(**given, fixed_point=bits) for bits in (16, None))
    assert_rounded(found, plain.reshape(2, 96), 16, 1e-6)


@pytest.mark.parametrize("tokens, head_dim", [(2, 16), (None, 24)])
@pytest.mark.parametrize("implementation", ["xla", slow("interpret")])
def test_attention_of_no_whole_runs_comes_as_floats(implementation, tokens, head_dim):
    by_token = (2,) if tokens is None else (2, tokens)
    q, (k, v) = normal(*by_token, 4, head_dim), (normal(2, 2, 32, head_dim, seed=seed) for seed in (1, 2))
    given = dict(
        q=q, cache=pk.KVCache(k=k, v=v), lengths=jnp.full(by_token, 20, jnp.int32), implementation=implementation
    )
    found, plain = (pk.attention(**given, fixed_point=bits) for bits in (16, None))
    assert found.shape == q.shape
    np.testing.assert_array_equal(found, plain)


@pytest.mark.slow
def test_runs_that_two_programs_share_come_as_floats():
    weight, x, norm = quantised(48, 2, 128), normal(1, 128).astype(jnp.bfloat16), jnp.ones(128, jnp.bfloat16)
    for tiles, width in ((RUNS_OF_TWO_PROGRAMS, 48), (TILES, 40)):
        part = jax.tree.map(lambda array, width=width: array[:width], weight)
        given = dict(x=x, norm=norm, weight=part, implementation="interpret", tiles=tiles)
        found, plain = (pk.gate_up(**given, fixed_point=bits) for bits in (16, None))
        np.testing.assert_array_equal(found, plain)


def of_two_kernels(x, bits):
    """Of two kernels in a row, the first of which leaves the second fixed point, or floats."""
    hidden = pk.gate_up(x, jnp.ones(64), quantised(32, 2, 64), fixed_point=bits, implementation="xla", tiles=TILES)
    return jnp.sum(pk.down(hidden, quantised(16, 32), out_dtype="float32", implementation="xla", tiles=TILES) ** 3)


def deferred_sum(x, bits):
    """Of the sum beside a deferred norm: part of the gradient would be missing."""
    _, total = pk.down(x, quantised(16, 64), norm=jnp.ones(16), fixed_point=bits, implementation="xla", tiles=TILES)
    return jnp.sum(total)


def attended(q, bits):
    cache = pk.KVCache(k=normal(1, 1, 16, 64).astype(q.dtype), v=normal(1, 1, 16, 64, seed=1).astype(q.dtype))
    found = pk.attention(q[:, None], cache, lengths=jnp.array([5]), fixed_point=bits, implementation="xla")
    return jnp.sum(to_floats(found) if bits else found)


def rounded_by_itself(x, bits):
    return jnp.sum(to_floats(to_fixed_point(x, bits)) if bits else x)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("function", [of_two_kernels, deferred_sum, attended, rounded_by_itself])
def test_it_has_no_gradient(function, compiled):
    x = normal(1, 64).astype(jnp.bfloat16)
    call = jax.jit(function, static_argnums=1) if compiled else function
    trace = lambda function, bits: jax.eval_shape(lambda x: function(x, bits), x)
    trace(call, 16)
    with pytest.raises(TypeError, match=r"^fixed_point: no gradient passes activations in fixed point; ask for floats"):
        trace(jax.grad(call), 16)
    assert trace(jax.grad(call), None).shape == x.shape


@pytest.mark.parametrize("op", ["gate_up", "down"])
def test_more_rows_than_a_launch_takes_come_as_floats(op):
    """A last launch of a single row would make fixed point, where the one before leaves floats."""
    x, norm = normal(257, 64).astype(jnp.bfloat16), jnp.ones(64, jnp.bfloat16)
    weight = quantised(*((16, 2, 64) if op == "gate_up" else (16, 64)))
    given = dict(x=x, norm=norm if op == "gate_up" else norm[:16], weight=weight)

    def described(rows, implementation):
        part = given | dict(x=x[:rows])
        found = jax.eval_shape(
            lambda part: getattr(pk, op)(**part, fixed_point=16, implementation=implementation), part
        )
        return found if op == "gate_up" else found[0].x

    for implementation in ("interpret", "xla"):
        found = described(257, implementation)
        assert isinstance(found, jax.ShapeDtypeStruct) and found.shape == (257, 16) and found.dtype == jnp.bfloat16
        assert isinstance(described(2, implementation), pk.FixedPointRows)


def test_who_wants_them():
    def bits(op, rows=1, qk_norm=False, **way):
        """As on that GPU, of a weight [64, 128] that is quantised in a way."""
        shape = (64, 2, 128) if op in ("qkv", "gate_up") else (64, 128)
        weight = jax.eval_shape(lambda: quantised(*shape, **way))
        with for_gpu("h200"):
            return pk.fixed_point_bits(op, weight, rows, qk_norm=qk_norm)

    assert bits("down") == bits("gate_up") == bits("out", rows=2) == 16
    assert bits("head", rows=2, activations="int8") == 8
    assert bits("out", rows=3) is None
    assert bits("qkv") == 16 and bits("qkv", qk_norm=True) is None, "heads are normed on tensor cores"
    assert bits("down", format="int8") is None, "with 16 bits rounding them costs a kernel nothing"
    assert bits("down", format="fp8") is None
    assert bits("down", format="int8") is bits("gate_up", format="int8", group=None) is None
    assert bits("down", format="int8", activations="int8") == 8
    dense = pk.DenseWeight(values=jax.ShapeDtypeStruct((64, 128), jnp.bfloat16))
    with for_gpu("h200"):
        assert pk.fixed_point_bits("down", dense, 1) is None


@pytest.mark.parametrize("rows", [1, 2])
def test_who_makes_and_who_takes_them_lower(rows):
    def run(x, norm, gate_up, down):
        hidden = pk.gate_up(x, norm, gate_up, fixed_point=16, implementation="triton", tiles=TILES)
        deferred, _ = pk.down(hidden, down, norm=norm, fixed_point=16, implementation="triton", tiles=TILES)
        assert isinstance(hidden, pk.FixedPointRows) and isinstance(deferred.x, pk.FixedPointRows)
        return pk.gate_up(deferred, None, gate_up, implementation="triton", tiles=TILES)

    x, norm = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((rows, 128), (128,)))
    weights = jax.eval_shape(lambda: (quantised(256, 2, 128), quantised(128, 256)))
    with for_gpu("h200"), pytest.warns(DeprecationWarning):
        text = jax.jit(run).trace(x, norm, *weights).lower(lowering_platforms=("cuda",)).as_text()
    assert "ld.global.v4.b32" in text


MMA = pk.Tiles(block_n=16, block_k=32, num_warps=1, num_stages=3, mma=True)


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(weight=pk.DenseWeight(values=normal(48, 128).astype(jnp.bfloat16))), "^x: rows in fixed point need int8"),
        (dict(weight=quantised(48, 128, format="fp8")), "^x: rows in fixed point need int8"),
        (dict(weight=quantised(48, 128, group=8)), "^x: rows in fixed point need int8 or int4 weights in whole runs"),
        (dict(x=to_fixed_point(normal(1, 128), 8, dtype=jnp.bfloat16)), "^x: expected numbers of 16 bits .* got 8"),
        (dict(weight=quantised(48, 128, activations="int8")), "^x: expected numbers of 8 bits .* got 16"),
        (dict(fixed_point=16), "^fixed_point: expected None without a norm, got 16"),
        (dict(fixed_point=12, norm=jnp.ones(48)), "^fixed_point: expected None, 16 or 8, got 12"),
        (dict(fixed_point=16.0, norm=jnp.ones(48)), "^fixed_point: expected None, 16 or 8, got 16.0"),
    ],
)
@pytest.mark.parametrize("implementation", ["interpret", "xla"])
def test_what_is_refused(change, match, implementation):
    given = dict(
        x=to_fixed_point(normal(1, 128), dtype=jnp.bfloat16), weight=quantised(48, 128), tiles=TILES,
        implementation=implementation,
    )  # fmt: skip
    with pytest.raises(ValueError, match=match):
        pk.down(**given | change)


def test_tensor_cores_take_none():
    x = to_fixed_point(normal(1, 128), dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"^x: rows in fixed point are multiplied on vectors, expected .* mma=False"):
        pk.down(x, quantised(48, 128), tiles=MMA, implementation="interpret")


@pytest.mark.parametrize("implementation", ["interpret", "xla"])
@pytest.mark.parametrize("op", ["qkv", "gate_up", "head", "head_logits"])
def test_what_norms_refuse(op, implementation):
    rows = to_fixed_point(normal(2, 128), dtype=jnp.bfloat16)
    x = pk.DeferredNorm(x=rows, squares=jnp.ones((2, 3)))
    given = dict(x=x, norm=None, implementation=implementation)
    if op == "qkv":
        cache = pk.KVCache.zeros(2, 1, 16, 16, "bfloat16")
        given |= dict(cache=cache, positions=jnp.zeros(2, jnp.int32), rope=None)
    values = normal(*((48, 128) if op.startswith("head") else (48, 2, 128)))
    dense = pk.DenseWeight(values=values.astype(jnp.bfloat16), rotary_dim=0 if op == "qkv" else None)
    rounding = pk.quantise(values, "int4", group=32, activations="int8", rotary_dim=dense.rotary_dim)
    for weight, match in ((dense, "rows in fixed point need int8"), (rounding, "expected numbers of 8 bits")):
        with pytest.raises(ValueError, match=f"^x: {match}"):
            getattr(pk, op)(weight=weight, **given)


def test_a_norm_yet_to_be_made_is_refused():
    x = to_fixed_point(normal(1, 128), dtype=jnp.bfloat16)
    with pytest.raises(TypeError, match=r"^x: expected an array or a DeferredNorm, got rows"):
        pk.gate_up(x, jnp.ones(128), quantised(48, 2, 128), implementation="interpret")
