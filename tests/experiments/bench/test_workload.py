"""The decode steps that are timed: that they decode, copy no cache, and begin the same for the same number."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench.workload import Decoder, Workload, mean_bytes
from tests.experiments.decode.small import CONFIG, decoder_of
from tokenspeed.engine import generation
from tokenspeed.engine.generation import Weights
from tokenspeed.models.memory import decode_bytes

LENGTH, STEPS = 7, 5
"""Of the prompts, and of the program."""


@pytest.fixture(scope="module")
def decoder():
    """Of weights large enough that its tokens vary."""
    decoder = Decoder(CONFIG, "float32", 0)
    decoder.weights = Weights.of(jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, decoder.weights.model))
    return decoder


# Kernels for the sake of the tokens alone, and of one row, for which norms are deferred.
@pytest.mark.slow
@pytest.mark.parametrize("implementation, batch", [("xla", 2), ("interpret", 1)])
def test_the_program_draws_the_tokens_of_teacher_forcing(decoder, implementation, batch):
    """After a real prefill: each token is the argmax of the model on all tokens before it."""
    workload = Workload(decoder, batch=batch, context=LENGTH, steps=STEPS)
    weights, rope = decoder.weights, workload.rope
    prompts = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (batch, LENGTH)).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (batch, LENGTH))
    state = workload.fresh(0)
    x, caches = jax.jit(type(weights.model).prefill, static_argnames="capacity")(
        weights.model, state.caches, prompts, positions, rope, capacity=LENGTH
    )
    state = dataclasses.replace(state, caches=caches, hidden=x[:, -1], position=positions[:, -1])
    state, first = jax.jit(functools.partial(generation.draw_first, logprobs=None, implementation="xla"))(
        weights, state
    )
    state, drawn = workload.compiled(implementation)(weights, state, rope)

    whole = np.concatenate([prompts, np.asarray(first.tokens).T, np.asarray(drawn.tokens).T], axis=1)
    forced = jax.jit(type(weights.model).__call__)(weights.model, whole)
    np.testing.assert_array_equal(whole[:, LENGTH:], forced.argmax(-1)[:, LENGTH - 1 : -1])
    assert len(np.unique(whole[:, LENGTH:])) > batch, "the check is worth little where a token repeats"
    assert state.position.tolist() == [LENGTH + STEPS] * batch and not state.counters.any()


# --- pages


def contiguous(cache, page_table):
    """A pool [P, K, Z, H] as [B, K, pages of a sequence * Z, H], for keys and for values."""
    table = np.asarray(page_table)
    for pool in (cache.k, cache.v):
        cut = np.moveaxis(np.asarray(pool.astype(jnp.float32))[table], 1, 2)  # [B, K, pages, Z, H]
        yield cut.reshape(*cut.shape[:2], -1, cut.shape[-1])


@pytest.mark.slow
@pytest.mark.parametrize("page_size, capacity", [(16, 128), (48, 144), (256, 256)])
def test_a_sequence_has_the_same_cache_in_pages_of_any_size(page_size, capacity):
    whole, paged = (
        Workload(decoder_of(CONFIG, jnp.bfloat16, 0), batch=3, context=20, steps=4, page_size=size)
        for size in (0, page_size)
    )
    assert whole.page_table is None and (whole.capacity, paged.capacity) == (128, capacity)
    pages = paged.page_table.size
    assert sorted(paged.page_table.reshape(-1).tolist()) == list(range(pages)) and pages == 3 * capacity // page_size
    one, other = whole.fresh(1), paged.fresh(1)
    np.testing.assert_array_equal(one.token, other.token)
    for cache, pool in zip(one.caches, other.caches, strict=True):
        assert pool.k.shape == (pages, 2, page_size, 8)
        for expected, found in zip((cache.k, cache.v), contiguous(pool, paged.page_table)):
            np.testing.assert_array_equal(found[:, :, :128], expected.astype(jnp.float32))
            assert np.isfinite(found[:, :, :20]).all() and np.isnan(found[:, :, 20:]).all()


# Kernels for the sake of the table alone: a step that crosses from one page into the next, and one row.
@pytest.mark.slow
@pytest.mark.parametrize("implementation, batch, sizes", [("xla", 3, (16, 256)), ("interpret", 1, (16,))])
def test_the_tokens_are_those_of_a_contiguous_cache(decoder, implementation, batch, sizes):
    def drawn(page_size):
        workload = Workload(decoder, batch=batch, context=30, steps=4, page_size=page_size)
        state = workload.fresh(0)
        after, drawn = workload.compiled(implementation)(decoder.weights, state, workload.rope)
        assert state.caches[0].k.is_deleted(), "the pages are donated"
        assert after.position.tolist() == [34] * batch and (drawn.tokens >= 0).all(), "no step saw what is NaN"
        return np.asarray(drawn.tokens)

    whole = drawn(0)
    assert len(np.unique(whole)) > batch, "the check is worth little where a token repeats"
    for size in sizes:
        np.testing.assert_array_equal(drawn(size), whole)


# --- how it begins


@pytest.fixture(scope="module")
def workload():
    return Workload(decoder_of(CONFIG, jnp.bfloat16, 0), batch=3, context=20, steps=4)


@pytest.fixture(scope="module")
def program(workload):
    return workload.compiled("xla")


@pytest.mark.slow
def test_sequences_are_their_own_and_the_same_again(workload, program):
    first, again, other = (workload.fresh(number) for number in (0, 0, 1))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a.astype(jnp.float32), b.astype(jnp.float32))
    assert (first.caches[0].k[:, :, :20] != other.caches[0].k[:, :, :20]).any()
    assert (first.caches[0].k[:, :, :20] != first.caches[1].k[:, :, :20]).any()
    assert workload.capacity == 128
    assert jnp.isfinite(first.caches[1].v[:, :, :20]).all() and jnp.isnan(first.caches[1].v[:, :, 20:]).all()
    state, drawn = program(workload.decoder.weights, first, workload.rope)
    assert drawn.tokens.shape == (4, 3) and (drawn.tokens >= 0).all(), "no logit is broken: the NaN is not seen"
    assert state.position.tolist() == [24] * 3
    assert first.caches[0].k.is_deleted(), "the cache is donated"


@pytest.mark.slow
def test_what_a_step_may_not_see_is_told(workload, program):
    """A sequence that stands a position too far reads a position of the cache that no step has written."""
    state = workload.fresh(0)
    state = dataclasses.replace(state, position=state.position + 1)
    _, drawn = program(workload.decoder.weights, state, workload.rope)
    assert (drawn.tokens[0] == generation.BROKEN).all()


@pytest.mark.slow
def test_the_program_copies_no_cache_and_names_its_stages(program):
    text = program.as_text()
    copies = [line for line in text.splitlines() if " copy(" in line and "[3,2,128,8]" in line.split(" copy(")[0]]
    assert not copies
    for stage in ("decode_step", "decode_step/embedding", "decode_step/qkv", "decode_step/down", "draw/head"):
        assert f"/{stage}/" in text


@pytest.mark.slow
def test_programs_are_compiled_side_by_side_and_failures_told_apart(workload, monkeypatch):
    made = []

    def compiled(self, implementation, options=None):
        if implementation == "broken":
            raise ValueError("no")
        made.append(implementation)
        return lambda: made

    monkeypatch.setattr(Workload, "compiled", compiled)
    found = workload.programs(("xla", "broken"), compilations=2)
    assert list(found) == ["xla", "broken"] and made == ["xla", "xla"]
    assert all(map(callable, found["xla"])) and len(found["xla"]) == 2
    assert [str(error) for error in found["broken"]] == ["no", "no"]


def test_bytes_are_those_of_the_mean_step():
    """Steps behind 20 positions see 21, 22 and 23 keys: on average those of the middle one."""
    middle = decode_bytes(CONFIG, dtype="bfloat16", context=22, batch=2)
    assert mean_bytes(CONFIG, "bfloat16", batch=2, context=20, steps=3) == middle
