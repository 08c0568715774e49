"""What is recorded of a decode step is what it calls: seen by the arrays that reach its kernels, and in its engine."""

import inspect
import types

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels as pk
from experiments.bench import recorded
from experiments.bench.models import config_of
from experiments.bench.workload import Decoder, Workload
from tokenspeed.engine import decode
from tokenspeed.engine.generation import Weights
from tokenspeed.weights.random import random_model

ASIDE = ("implementation", "tiles", "prefetch", "prefetch_bytes")
CONTEXT = 128


def shown(op, arguments):
    """A call in a form that two of them are compared by: arrays by shape and dtype, the rest as it is."""
    leaves, tree = jax.tree.flatten({name: value for name, value in arguments.items() if name not in ASIDE})
    return op, str(tree), [f"{leaf.shape} {leaf.dtype}" if hasattr(leaf, "shape") else repr(leaf) for leaf in leaves]


def spying():
    """(pallas_kernels, the calls that reach it): arrays are what the kernels really take."""
    calls = []

    def spy(op):
        function = getattr(pk, op)

        def call(*args, **how):
            calls.append((op, inspect.signature(function).bind(*args, **how).arguments))
            return function(*args, **how)

        return call

    ops = {op: spy(op) for op in (*recorded.OPS, "head_logits")}
    return types.SimpleNamespace(**ops, fixed_point_bits=pk.fixed_point_bits), calls


def calls_of(model, batch, implementation, dtype="bfloat16", context=CONTEXT, page_size=0):
    return recorded.calls_of_step(
        model, batch=batch, context=context, dtype=dtype, implementation=implementation, page_size=page_size
    )


@pytest.mark.slow
@pytest.mark.parametrize("batch, dtype", [(1, "bfloat16"), (2, "bfloat16"), (2, "float32")])
def test_recorded_calls_are_those_of_a_step_that_runs(batch, dtype):
    """XLA's step, on arrays, nothing traced."""
    config = config_of("ragged")
    model = Weights.of(random_model(config, dtype, 0)).model
    kernels, calls = spying()
    caches = [pk.KVCache.zeros(batch, config.num_kv_heads, CONTEXT, config.head_dim, dtype) for _ in config.layers]
    where = jnp.full((batch, 1), 3, jnp.int32)
    x, _, _ = decode.decode_step(
        model, caches, where, where, model.rope_tables(CONTEXT), implementation="xla", kernels=kernels,
        counters=pk.attention_counters(batch, config.num_kv_heads),
    )  # fmt: skip
    decode.greedy(model, x, "xla", kernels)
    expected = [shown(call.op, call.arguments) for call in calls_of("ragged", batch, "xla", dtype)]
    assert [shown(*call) for call in calls] == expected and len(expected) == 5 * len(config.layers) + 1
    assert {how["implementation"] for _, how in calls} == {"xla"}


@pytest.mark.slow
@pytest.mark.parametrize("batch, page_size", [(1, 0), (2, 0), (2, 16)])
@pytest.mark.parametrize("implementation", ["interpret", "xla"])
def test_recorded_calls_are_those_of_the_engines_loop(implementation, batch, page_size):
    """As `experiments.decode` times it."""
    config = config_of("ragged")
    kernels, calls = spying()
    work = Workload(Decoder(config, "bfloat16", 0), batch=batch, context=CONTEXT - 1, steps=1, page_size=page_size)
    assert work.capacity == CONTEXT
    work.lowered(steps=1, implementation=implementation, kernels=kernels)
    step = calls[: 5 * len(config.layers) + 1]
    recorded_calls = calls_of("ragged", batch, implementation, page_size=page_size)
    expected = [shown(call.op, call.arguments) for call in recorded_calls]
    assert [shown(*call) for call in step] == expected
    assert {how["implementation"] for _, how in step} == {implementation}


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("model", ["ragged", "llama-3.2-1b", "qwen2.5-0.5b"])
def test_the_norm_after_out_and_down_is_deferred(model, batch):
    config, how = config_of(model), dict(context=CONTEXT, dtype="bfloat16", implementation=recorded.BY_THE_KERNELS)
    width = config.d_model
    for op in ("out", "down"):
        call = recorded.call_of(op, model, batch=batch, **how)
        assert (call.arguments["norm"].shape, call.arguments["norm"].dtype) == ((width,), jnp.bfloat16)
        assert call.arguments["residual"].dtype == jnp.float32
        deferred, total = jax.eval_shape(lambda call=call: getattr(pk, call.op)(**zeros(call), implementation="xla"))
        assert isinstance(deferred, pk.DeferredNorm) and (total.shape, total.dtype) == ((batch, width), jnp.float32)
    for op in ("qkv", "gate_up", "head"):
        found = recorded.call_of(op, model, batch=batch, **how).arguments
        assert isinstance(found["x"], pk.DeferredNorm) and found.get("norm") is None
        assert found["x"].x.shape == (batch, width) and found["x"].squares.dtype == jnp.float32


def test_xlas_step_is_recorded_as_it_is_made():
    """It defers no norm."""
    kernels, xla = calls_of("ragged", 1, recorded.BY_THE_KERNELS), calls_of("ragged", 1, "xla")
    assert [call.op for call in kernels] == [call.op for call in xla]
    differ = {a.op for a, b in zip(kernels, xla) if shown(a.op, a.arguments) != shown(b.op, b.arguments)}
    assert differ == {"qkv", "out", "gate_up", "down", "head"}, "attention alone is the same"
    assert all(call.arguments.get("norm") is None for call in xla if call.op in ("out", "down"))
    assert all(call.arguments["norm"] is not None for call in xla if call.op in ("qkv", "gate_up", "head"))


def test_the_call_of_an_op_is_the_one_that_most_layers_make():
    """The first layer's rows are an embedding and carry no deferred norm; all others' do."""
    how = dict(batch=1, context=CONTEXT, dtype="bfloat16", implementation=recorded.BY_THE_KERNELS)
    first, *others = [call for call in recorded.calls_of_step("llama-3.2-1b", **how) if call.op == "qkv"]
    assert not isinstance(first.arguments["x"], pk.DeferredNorm) and len(others) == recorded.LAYERS - 1
    assert recorded.call_of("qkv", "llama-3.2-1b", **how) == others[-1]


@pytest.mark.parametrize("op", recorded.OPS)
def test_arguments_are_what_the_op_takes_and_say_nothing_of_how_it_runs(op):
    call = recorded.call_of(
        op, "llama-3.1-8b", batch=1, context=1024, dtype="bfloat16", implementation=recorded.BY_THE_KERNELS
    )
    assert set(call.arguments) <= set(inspect.signature(getattr(pk, op)).parameters) - set(ASIDE)
    leaves = jax.tree.leaves(call.arguments)
    assert any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert not any(isinstance(leaf, jax.Array) for leaf in leaves)


def test_pages_are_in_the_calls_that_read_and_write_the_cache():
    """Of 80 positions in pages of 32, three a sequence; all other calls are as without pages."""
    whole, paged = (calls_of("ragged", 2, recorded.BY_THE_KERNELS, context=80, page_size=size) for size in (0, 32))
    for one, other in zip(whole, paged, strict=True):
        if one.op not in ("qkv", "attention"):
            assert shown(one.op, one.arguments) == shown(other.op, other.arguments)
            continue
        assert one.arguments["page_table"] is None and one.arguments["cache"].k.shape[::2] == (2, 80)
        table = other.arguments["page_table"]
        assert (table.shape, table.dtype) == ((2, 3), jnp.int32)
        assert other.arguments["cache"].k.shape[::2] == (6, 32)


def zeros(call):
    """The arrays of a call."""
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
        call.arguments,
    )
