"""rope_and_cache: the end of qkv, of a product from elsewhere."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.common.launch import guarded
from tests.pallas_kernels import covering, inputs
from tests.pallas_kernels.compare import assert_same_bits
from tests.pallas_kernels.inputs import Layout
from tests.pallas_kernels.lowering import for_gpu
from tests.pallas_kernels.marks import slow
from tests.pallas_kernels.ragged import HEADS, KV_DTYPES, sequences_of

CASES = covering.all_pairs(
    rows=(5, 40, 300),
    dtype=pk.DTYPES,
    heads=HEADS,
    head_dim=(8, 24, 80),
    layout=(Layout(29), Layout(6, 5), Layout(16, 2)),
    sequences=("one", "half", "each"),
    padding=(False, True),
    rotary=(0.0, 0.5, 1.0),
    qk_norm=(False, True),
    kv_dtypes=KV_DTYPES,
)


def call_of(seed=0, *, rows, heads=(4, 2), head_dim=24, rotary=1.0, **options):
    """(pairs, cache, the other arguments) of a call, and the call of qkv that it is the end of."""
    query_heads, kv_heads = heads
    options = sequences_of(dict(rows=rows, sequences="half", padding=False) | options) | {
        name: value for name, value in options.items() if name not in ("sequences", "padding")
    }
    rotary_dim = int(rotary * head_dim)
    call = inputs.qkv(
        inputs.Values(seed), rows=rows, width=16, heads=query_heads, kv_heads=kv_heads, head_dim=head_dim,
        rotary_dim=rotary_dim, **dict(layout=Layout(29)) | options,
    )  # fmt: skip
    arrays = call.arrays
    hidden = pk.rms_norm(arrays["x"], arrays["norm"], 1e-5, call.options["norm_offset"])
    pairs = pk.project(hidden.astype(arrays["weight"].dtype), arrays["weight"])
    names = ("positions", "rope", "sequence", "page_table", "q_norm", "k_norm")
    how = {name: arrays[name] for name in names} | call.options
    return pairs, arrays["cache"], how | dict(rotary_dim=arrays["weight"].rotary_dim), call


def assert_as_the_reference(pairs, cache, how):
    with guarded():
        found = pk.rope_and_cache(pairs, cache, **how, implementation="interpret")
    expected = pk.rope_and_cache(pairs, cache, **how, implementation="xla")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # Both round the same float32 arithmetic once; QK-norm sums in another order, and may round the other way.
        step = 2.0 ** -{"float32": 20, "bfloat16": 7, "float16": 10, "float8_e4m3fn": 3, "int8": 0}[one.dtype.name]
        relative = 0.0 if one.dtype == jnp.int8 else step
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=relative, atol=step)


@pytest.mark.parametrize("seed, case", covering.parameters(CASES, quick=(0,)))
def test_kernel_and_reference_agree(seed, case):
    pairs, cache, how, call = call_of(seed, **case)
    assert_as_the_reference(pairs, cache, how | dict(out_dtype=call.arrays["weight"].dtype))


@pytest.mark.parametrize("implementation", [slow("xla"), slow("interpret")])
def test_it_is_the_end_of_qkv(implementation):
    """Of qkv whose product is XLA's."""
    pairs, cache, how, call = call_of(rows=21, layout=Layout(6, 5), dtype="float32", padding=True)
    q, k, v, written = pk.rope_and_cache(pairs, cache, **how, implementation=implementation)
    whole_q, whole = call("xla")
    for one, other in ((q, whole_q), (written.k, whole.k), (written.v, whole.v)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)  # float32, compiled apart and together
    table, at = np.asarray(how["page_table"]), np.asarray(how["positions"])
    real = at >= 0
    page = table[np.asarray(how["sequence"])[real], at[real] // 6]
    assert_same_bits(k[real], np.asarray(written.k)[page, :, at[real] % 6])
    assert_same_bits(v[real], np.asarray(written.v)[page, :, at[real] % 6])


@pytest.mark.slow
def test_a_row_without_a_place_is_nan_where_it_is_traced():
    pairs, cache, how, _ = call_of(rows=5, layout=Layout(6, 5))
    positions = how.pop("positions").at[2].set(30)
    with pytest.raises(ValueError, match="positions"):
        pk.rope_and_cache(pairs, cache, positions=positions, **how, implementation="xla")
    for implementation in ("xla", "interpret"):
        run = jax.jit(lambda at, how=how, name=implementation: pk.rope_and_cache(
            pairs, cache, positions=at, **how, implementation=name
        ))  # fmt: skip
        q = np.asarray(run(positions)[0], np.float32)
        assert np.isnan(q[2]).all() and np.isfinite(np.delete(q, 2, axis=0)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, options",
    [
        ("bfloat16", dict(padding=True)),
        ("float16", dict(qk_norm=True, rotary=0.5, kv_dtypes=("int8", None))),
    ],
)
def test_programs_of_some_heads(dtype, options):
    """Of 4 kv heads, and a product in 16 bits, whose pairs are loaded as words."""
    pairs, cache, how, _ = call_of(rows=260, heads=(8, 4), head_dim=8, layout=Layout(6, 5), dtype=dtype, **options)
    assert_as_the_reference(pairs.astype(dtype), cache, how | dict(out_dtype=dtype))


@pytest.mark.slow
def test_its_dtypes():
    pairs, cache, how, _ = call_of(rows=5, dtype="bfloat16")
    assert pairs.dtype == jnp.float32
    for out_dtype, expected in ((None, "bfloat16"), ("float32", "float32")):
        for narrow in (pairs, pairs.astype(jnp.bfloat16)):
            q, k, v, written = pk.rope_and_cache(narrow, cache, **how, out_dtype=out_dtype, implementation="interpret")
            assert (q.dtype, k.dtype, v.dtype, written.k.dtype) == (expected, *["bfloat16"] * 3)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(pairs=jnp.ones((5, 96))), "pairs: expected shape [B, (N + 2K) * H / 2, 2], got [5, 96]"),
        (dict(pairs=jnp.ones((6, 96, 2))), "sequence: expected shape [6], got [5]"),
        (dict(pairs=jnp.ones((5, 40, 2))), "pairs: expected (N + 2K) * H / 2 pairs for K=2 and an even H=24, got 40"),
        (dict(pairs=jnp.ones((5, 96, 2), jnp.int32)), "pairs: expected"),
        (dict(rotary_dim=5), "rotary_dim: expected an even number"),
        (dict(rotary_dim=8), "rope: expected 4 columns"),
        (dict(q_norm=jnp.ones(24)), "q_norm, k_norm: expected both or neither"),
        (dict(eps=0.0), "eps: expected"),
        (dict(out_dtype="int8"), "out_dtype: expected bfloat16 or float16 or float32, got int8"),
        (dict(cache=None), "cache: expected"),
    ],
)
def test_wrong_arguments(change, message):
    pairs, cache, how, _ = call_of(rows=5)
    arguments = dict(pairs=pairs, cache=cache, implementation="xla") | how | change
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        pk.rope_and_cache(**arguments)


@pytest.mark.slow
def test_gradients_are_the_references():
    pairs, cache, how, _ = call_of(rows=5, dtype="float32")

    def loss(pairs, implementation):
        q, *_, written = pk.rope_and_cache(pairs, cache, **how, implementation=implementation)
        return jnp.sum(q**2) + jnp.sum(written.k**2)

    found, expected = (jax.grad(loss)(pairs, name) for name in ("interpret", "xla"))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)  # of one function, around other sums


@pytest.mark.slow
@pytest.mark.parametrize("rows", [8, 4096])
def test_it_lowers_for_a_gpu(rows):
    shapes = jax.ShapeDtypeStruct
    cache = pk.KVCache(k=shapes((2, 8, 8192, 128), jnp.bfloat16), v=shapes((2, 8, 8192, 128), jnp.bfloat16))
    table = shapes((8192, 64), jnp.float32)

    def run(pairs, cache, positions, sequence, cos, sin):
        return pk.rope_and_cache(pairs, cache, positions=positions, sequence=sequence, rope=(cos, sin))

    at = shapes((rows,), jnp.int32)
    with for_gpu():
        lowered = jax.jit(run).trace(shapes((rows, 3072, 2), jnp.bfloat16), cache, at, at, table, table)
        assert "triton" in lowered.lower(lowering_platforms=("cuda",)).as_text()
