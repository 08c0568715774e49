"""The loop that the decode benchmark times: that it decodes, copies no cache and lowers for a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from experiments import unfused
from experiments.decode_loop import State, Workload, loop
from pallas_kernels import KVCache, attention_counters
from pallas_kernels.common import levers
from tests import lowering
from tests.experiments.small import CONFIG, decoder_of


def _scaled(model):
    """Weights large enough that its tokens vary."""
    return jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, model)


# Kernels for the sake of the tokens alone; for one row the norms come in halves.
@pytest.mark.parametrize("implementation, batch", [("xla", 2), ("interpret", 2), ("interpret", 1)])
def test_the_loop_draws_the_tokens_of_teacher_forcing(implementation, batch):
    """After a real prefill of ragged batches of one length: each token is the argmax of the model on all before it."""
    length, steps, capacity = 7, 5, 16
    decoder = decoder_of(CONFIG, jnp.float32, 0)
    model = _scaled(decoder.model(decoder.weights))
    prompts = jnp.asarray(np.random.default_rng(0).integers(0, 96, (batch, length)), jnp.int32)
    empty = [KVCache.zeros(batch, 2, capacity, 8, jnp.float32) for _ in range(2)]
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    rope = model.rope_tables(capacity)
    x, caches = jax.jit(functools.partial(type(model).prefill, capacity=capacity))(
        model, empty, prompts, positions, rope
    )
    first = model.logits(x[:, -1]).argmax(-1).astype(jnp.int32)
    state = State(
        caches=caches,
        counters=attention_counters(batch, 2),
        token=first,
        position=jnp.full((batch,), length, jnp.int32),
    )
    decode_steps = jax.jit(functools.partial(loop, steps=steps, implementation=implementation))
    state, tokens, logits = decode_steps(model, state, rope)

    whole = jnp.concatenate([prompts, first[:, None], tokens.T], axis=1)
    forced = jax.jit(type(model).__call__)(model, whole)
    np.testing.assert_array_equal(whole[:, length:], forced.argmax(-1)[:, length - 1 : -1])
    np.testing.assert_allclose(logits, forced[:, -2].max(-1), rtol=1e-4)
    assert len(np.unique(tokens)) > batch, "the check is worth little where a token repeats"
    assert state.position.tolist() == [length + steps] * batch and not state.counters.any()
    assert np.abs(caches[0].k[:, :, length + steps - 1]).max() == 0 < np.abs(state.caches[0].k[:, :, length + 4]).min()


@pytest.mark.parametrize(
    "implementation, batch, left_out, halves",
    [("interpret", 1, (), 4), ("interpret", 1, ("weighted_norm",), 0), ("interpret", 2, (), 0), ("xla", 1, (), 0)],
)
def test_norms_come_in_halves_where_one_row_goes_through_kernels(implementation, batch, left_out, halves):
    """All but the first, before which there is no kernel: those of two layers, and the head's."""
    decoder = decoder_of(CONFIG, jnp.bfloat16, 0)
    of, passed_on = Workload(decoder, batch=batch, context=20, steps=1), []

    def recorded(function):
        return lambda *args, norm=None, **how: passed_on.append(norm is not None) or function(*args, norm=norm, **how)

    kernels = unfused.kernels(out=recorded(pk.out), down=recorded(pk.down))
    run = functools.partial(loop, steps=1, implementation=implementation, kernels=kernels)
    with levers.without(*left_out):
        jax.eval_shape(run, decoder.model(decoder.weights), of.fresh(0), of.rope)
    assert len(passed_on) == 4 and sum(passed_on) == halves


@pytest.fixture(scope="module")
def workload():
    return Workload(decoder_of(CONFIG, jnp.bfloat16, 0), batch=3, context=20, steps=4)


@pytest.fixture(scope="module")
def program(workload):
    return workload.compiled("xla")


def test_sequences_are_their_own_and_the_same_again(workload, program):
    first, again, other = (workload.fresh(number) for number in (0, 0, 1))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a.astype(jnp.float32), b.astype(jnp.float32))
    assert (first.caches[0].k[:, :, :20] != other.caches[0].k[:, :, :20]).any()
    assert (first.caches[0].k[:, :, :20] != first.caches[1].k[:, :, :20]).any()
    assert workload.capacity == 128
    assert jnp.isfinite(first.caches[1].v[:, :, :20]).all() and jnp.isnan(first.caches[1].v[:, :, 20:]).all()
    state, tokens, logits = program(workload.decoder.weights, first, workload.rope)
    assert tokens.shape == (4, 3) and jnp.isfinite(logits).all() and state.position.tolist() == [24] * 3
    assert first.caches[0].k.is_deleted(), "the cache is donated"


def test_the_program_copies_no_cache_and_names_its_stages(program):
    text = program.as_text()
    copies = [line for line in text.splitlines() if " copy(" in line and "[3,2,128,8]" in line.split(" copy(")[0]]
    assert not copies
    for stage in ("decode_step", "decode_step/embedding", "decode_step/qkv", "decode_step/down", "head_argmax/head"):
        assert f"/{stage}/" in text


def test_the_fused_program_lowers_for_a_gpu():
    decoder = decoder_of(CONFIG, jnp.bfloat16, 0)
    of = Workload(decoder, batch=1, context=20, steps=4)
    state = jax.eval_shape(lambda: of.fresh(0))
    with lowering.for_gpu("h200"):
        run = functools.partial(loop, steps=4, implementation="triton")
        traced = jax.jit(run, donate_argnums=1).trace(decoder.model(decoder.weights), state, of.rope)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for kernel in ("qkv", "attention", "out", "gate_up", "down", "head", "head_argmax"):
        assert f'name = "{kernel}"' in text
    for operation in ("scatter", "dynamic_update_slice", "reduce"):  # a launch or more of its own at every step
        assert f"stablehlo.{operation}" not in text
