"""jit, vmap, shard_map and grad of every public function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import pallas_kernels as pk
from pallas_kernels.common import implementation as impl
from tests.pallas_kernels import inputs
from tests.pallas_kernels.compare import assert_same_bits
from tests.pallas_kernels.inputs import Layout
from tests.pallas_kernels.marks import slow

DRAW = inputs.Values(0)
LAYOUT = Layout(8, 3)
HEADS = dict(heads=4, kv_heads=2, head_dim=8)
CALLS = {
    "qkv": inputs.qkv(DRAW, rows=2, width=24, layout=LAYOUT, bias=True, qk_norm=True, dtype="float32", **HEADS),
    "attention": inputs.attention(DRAW, rows=2, layout=LAYOUT, dtype="float32", **HEADS),
    "attention, tokens": inputs.attention(inputs.Values(1), rows=2, layout=LAYOUT, dtype="float32", tokens=3, **HEADS),
    "out": inputs.projection(DRAW, pk.out, rows=2, outputs=24, inputs=32, bias=True, dtype="float32"),
    "gate_up": inputs.gate_up(DRAW, rows=2, width=24, features=20, bias=True, dtype="float32"),
    "head": inputs.head(DRAW, pk.head, rows=2, width=24, vocabulary=20, dtype="float32"),
    "head_logits": inputs.head(DRAW, rows=2, width=24, vocabulary=20, bias=True, soft_cap=3.0, dtype="float32"),
}
SLOW = ("qkv", "head", "attention, tokens")
each_op = pytest.mark.parametrize("name", [slow(name) if name in SLOW else name for name in CALLS])
both = pytest.mark.parametrize("implementation", ["interpret", "xla"])


def close(a, b):
    """float32 sums of a few dozen terms in another order."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), a, b)


def split(call, *shared):
    """(arrays to batch, the others): all but None and those named."""
    batched = {n: x for n, x in call.arrays.items() if x is not None and n not in shared}
    return batched, {n: x for n, x in call.arrays.items() if n not in batched}


@pytest.mark.slow
@both
@each_op
def test_jit(name, implementation):
    call = CALLS[name]
    close(jax.jit(call.bind(implementation))(**call.arrays), call(implementation))


@pytest.mark.slow
@both
@pytest.mark.parametrize(
    "name, shared",
    [
        ("qkv", ("weight", "norm", "rope")),
        ("attention", ()),
        ("attention, tokens", ()),
        ("out", ("weight",)),
        ("gate_up", ("weight", "norm")),
        ("head", ()),
        ("head_logits", ("norm",)),
    ],
)
def test_vmap(name, shared, implementation):
    call = CALLS[name]
    batched, rest = split(call, *shared)

    def changed(x):
        return jnp.stack([x, jnp.flip(x, axis=0)]) if x.dtype == jnp.float32 else jnp.stack([x, x])

    stacked = jax.tree.map(changed, batched)
    run = call.bind(implementation)
    got = jax.vmap(lambda arrays: run(**arrays, **rest))(stacked)
    for i in range(2):
        one = call.replace(**jax.tree.map(lambda x, i=i: x[i], stacked))
        close(jax.tree.map(lambda x, i=i: x[i], got), one(implementation))


def sharded(function, in_specs, out_specs):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False))


needs_two_devices = pytest.mark.skipif(jax.device_count() < 2, reason="one device")


@both
@needs_two_devices
class TestShardMap:
    """Tensor parallelism over two devices: outputs split for gate_up, qkv and attention, inputs split for out."""

    @pytest.mark.slow
    def test_gate_up(self, implementation):
        call = CALLS["gate_up"]
        arrays, run = call.arrays, call.bind(implementation)
        f = sharded(lambda x, norm, weight: run(x=x, norm=norm, weight=weight), (P(), P(), P("x")), P(None, "x"))
        close(f(arrays["x"], arrays["norm"], arrays["weight"]), call("xla"))

    @pytest.mark.slow
    def test_head_logits(self, implementation):
        call = CALLS["head_logits"]
        arrays, run = call.arrays, call.bind(implementation)
        f = sharded(lambda x, norm, weight: run(x=x, norm=norm, weight=weight), (P(), P(), P("x")), P(None, "x"))
        close(f(arrays["x"], arrays["norm"], arrays["weight"]), call("xla"))

    def test_out(self, implementation):
        call = CALLS["out"].replace(residual=None)
        x, weight = call.arrays["x"], pk.DenseWeight(values=call.arrays["weight"].values)
        run = call.bind(implementation)
        f = sharded(
            lambda x, values: jax.lax.psum(run(x=x, weight=pk.DenseWeight(values=values)), "x"),
            (P(None, "x"), P(None, "x")),
            P(),
        )
        close(f(x, weight.values), call.replace(weight=weight)("xla"))

    def test_attention(self, implementation):
        call = CALLS["attention"]
        run, rest = call.bind(implementation), {n: call.arrays[n] for n in ("lengths", "sequence", "page_table")}
        f = sharded(lambda q, cache: run(q=q, cache=cache, **rest), (P(None, "x"), P(None, "x")), P(None, "x"))
        close(f(call.arrays["q"], call.arrays["cache"]), call("xla"))

    @pytest.mark.slow
    def test_qkv_over_rows(self, implementation):
        """Data parallelism: each device has its own sequences and cache."""
        call = inputs.qkv(inputs.Values(1), rows=4, width=24, layout=Layout(8), dtype="float32", **HEADS)
        call = call.replace(sequence=None)
        arrays, run = call.arrays, call.bind(implementation)
        f = sharded(
            lambda x, cache, positions: run(
                x=x, cache=cache, positions=positions, **{n: arrays[n] for n in ("norm", "weight", "rope")}
            ),
            (P("x"), P("x"), P("x")),
            P("x"),
        )
        close(f(arrays["x"], arrays["cache"], arrays["positions"]), call("xla"))


def gradients(name, implementation):
    """Of a loss of the results by every float array, compiled in one piece."""
    call = CALLS[name]
    leaves, tree = jax.tree.flatten(call.arrays)
    places = [i for i, x in enumerate(leaves) if x.dtype == jnp.float32]

    def loss(values):
        new = list(leaves)
        for i, value in zip(places, values):
            new[i] = value
        result = call.bind(implementation)(**tree.unflatten(new))
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(result) if x.dtype == jnp.float32)

    return jax.jit(jax.grad(loss))([leaves[i] for i in places])


@pytest.mark.slow
@both
@each_op
def test_grad(name, implementation, monkeypatch):
    """By every float array; the attention's cache has NaN where nobody looks."""
    got = gradients(name, implementation)
    # The same loss through the plain functions, with no custom gradient in the way.
    monkeypatch.setattr(impl, "call", lambda kernel, reference, options, operands: reference(options, **operands))
    close(got, gradients(name, "xla"))
    assert all(jnp.isfinite(g).all() for g in got)
    assert any(jnp.any(g != 0) for g in got)


@pytest.mark.slow
def test_a_donated_cache_is_updated_in_place():
    """On the CPU only that the result is right; that no copy is made is tested on the GPU."""
    call = CALLS["qkv"]
    expected = call("interpret")
    cache = jax.tree.map(jnp.copy, call.arrays["cache"])
    step = jax.jit(call.bind("interpret"), donate_argnames=("cache",))
    assert_same_bits(step(**(call.arrays | dict(cache=cache))), expected)
