"""The model against another implementation's logits and greedy tokens, in every way of running it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import pallas_kernels as pk
from tests.pallas_kernels.marks import slow
from tests.tokenspeed.models import textbook
from tests.tokenspeed.shared import GOLDENS, folder
from tokenspeed.engine import decode
from tokenspeed.models import hf_config
from tokenspeed.weights import checkpoint

TOLERANCE = 2e-4
"""Of a logit: float32 sums in another order; logits are of the order of 1."""
CAPACITY = 96


@functools.cache
def golden(name):
    return load_file(folder("goldens", name) / "golden.safetensors")


@functools.cache
def model_of(name, dtype="float32"):
    return checkpoint.load(folder("goldens", name), dtype=dtype)


def caches(model, batch, page_size=CAPACITY):
    c = model.config
    pages = batch * CAPACITY // page_size
    nan = jnp.full((pages, c.num_kv_heads, page_size, c.head_dim), jnp.nan, model.dtype)
    return [pk.KVCache(k=nan, v=nan) for _ in range(c.num_layers)]


@functools.partial(jax.jit, static_argnames="capacity")
def prefill(model, caches, tokens, positions, rope, page_table=None, capacity=CAPACITY):
    x, caches = model.prefill(caches, tokens, positions, rope, capacity=capacity, page_table=page_table)
    return model.logits(x), caches


@functools.partial(jax.jit, static_argnames="implementation")
def step(model, caches, tokens, positions, rope, page_table, counters, implementation):
    x, caches, counters = decode.decode_step(
        model, caches, tokens, positions, rope, page_table=page_table, counters=counters, implementation=implementation
    )
    return decode.logits(model, x, implementation), decode.greedy(model, x, implementation)[0], caches, counters


def ascending(start, stop, batch):
    return jnp.broadcast_to(jnp.arange(start, stop, dtype=jnp.int32), (batch, stop - start))


@jax.jit
def forward(model, tokens):
    return model(tokens)


@pytest.mark.parametrize("name", ["llama-gqa", *map(slow, GOLDENS[1:])])
def test_a_whole_forward(name):
    found = forward(model_of(name), golden(name)["input_ids"].astype(np.int32))
    np.testing.assert_allclose(found, golden(name)["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, page_size",
    [("llama-gqa", CAPACITY), ("mistral-window", 16), *((name, CAPACITY) for name in GOLDENS[1:])],
)
@pytest.mark.parametrize("cuts", [(0, 48), (0, 1, 2, 25, 48)])
def test_prefill_in_chunks(name, page_size, cuts):
    """All at once, and in chunks of 1 and of 23 tokens, which do not end where pages do.

    Every size is a program to compile.
    """
    model, expected = model_of(name), golden(name)
    tokens = jnp.asarray(expected["input_ids"], jnp.int32)
    batch, rope, state = tokens.shape[0], model.rope_tables(CAPACITY), caches(model, tokens.shape[0], page_size)
    table = None
    if page_size != CAPACITY:
        order = np.random.default_rng(0).permutation(batch * CAPACITY // page_size)
        table = jnp.asarray(order.reshape(batch, -1), jnp.int32)
    for start, stop in itertools.pairwise(cuts):
        found, state = prefill(model, state, tokens[:, start:stop], ascending(start, stop, batch), rope, table)
        np.testing.assert_allclose(found, expected["logits"][:, start:stop], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama-gqa", *map(slow, GOLDENS[1:])])
def test_token_by_token_and_the_greedy_text(name):
    model, expected = model_of(name), golden(name)
    prompt, greedy = expected["input_ids"].astype(np.int32), expected["greedy"].astype(np.int32)
    batch, rope, state = len(prompt), model.rope_tables(CAPACITY), caches(model, len(prompt))
    counters = pk.attention_counters(batch, model.config.num_kv_heads)
    token = greedy[:, :1]
    for t in range(greedy.shape[1] - 1):
        found, best, state, counters = step(
            model, state, token, ascending(t, t + 1, batch), rope, None, counters, "xla"
        )
        if t < prompt.shape[1]:
            np.testing.assert_allclose(found, expected["logits"][:, t], rtol=0, atol=TOLERANCE)
            token = greedy[:, t + 1 : t + 2]
        else:
            token = np.asarray(best)[:, None]
        if t + 1 >= prompt.shape[1]:
            two = np.sort(np.asarray(found), axis=-1)[:, -2:]
            sure = two[:, 1] - two[:, 0] > 2 * TOLERANCE
            np.testing.assert_array_equal(np.asarray(best)[sure], greedy[sure, t + 1])
            token = greedy[:, t + 1 : t + 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-gqa", "qwen2-bias"])
def test_the_kernels_take_several_tokens_of_a_sequence(name):
    """In interpret mode, in pages, three tokens a sequence, behind a prefill."""
    model, expected = model_of(name), golden(name)
    tokens = jnp.asarray(expected["input_ids"], jnp.int32)
    batch, rope, state = tokens.shape[0], model.rope_tables(CAPACITY), caches(model, 2, 16)
    table = jnp.asarray(np.random.default_rng(1).permutation(12).reshape(2, -1), jnp.int32)
    _, state = prefill(model, state, tokens[:, :40], ascending(0, 40, batch), rope, table)
    for t in (40, 43):
        found, _, state, _ = step(
            model, state, tokens[:, t : t + 3], ascending(t, t + 3, batch), rope, table, None, "interpret"
        )
        found = found.reshape(batch, 3, -1)
        np.testing.assert_allclose(found, expected["logits"][:, t : t + 3], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_more_rows_than_a_kernel_takes_and_rows_not_in_use():
    model, expected = model_of("mistral-window"), golden("mistral-window")
    tokens = jnp.tile(jnp.asarray(expected["input_ids"], jnp.int32), (10, 1))  # 20 sequences
    rope, state = model.rope_tables(CAPACITY), caches(model, 20)
    _, state = prefill(model, state, tokens[:, :47], ascending(0, 47, 20), rope)
    used = jnp.arange(20) % 3 != 1
    position = jnp.where(used, 47, -1)[:, None]
    before = jax.tree.map(np.asarray, state)
    found, _, after, _ = step(model, state, tokens[:, 47:], position, rope, None, None, "xla")
    wanted = np.tile(expected["logits"][:, 47], (10, 1))
    np.testing.assert_allclose(found[used], wanted[used], rtol=0, atol=TOLERANCE)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
        np.testing.assert_array_equal(old[~used], new[~used])


@pytest.mark.parametrize("name", GOLDENS)
def test_the_textbook(name):
    """What the next test compares with is right itself."""
    path, expected = folder("goldens", name), golden(name)
    found = textbook.logits(textbook.tensors(path), hf_config.from_folder(path), expected["input_ids"])
    np.testing.assert_allclose(found, expected["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
def test_bfloat16_is_as_good_as_casting_is(name):
    """The RMS error over draws, against a textbook that rounds weights and activations to bfloat16."""
    config = hf_config.from_folder(folder("goldens", name))
    weights = textbook.tensors(folder("goldens", name))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (8, 48))
    truth, casting = (textbook.logits(weights, config, tokens, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    found = forward(model_of(name, "bfloat16"), tokens.astype(np.int32))

    def rms(x):
        return float(np.sqrt(np.mean((x - truth) ** 2)))

    assert rms(found) <= 1.5 * rms(casting)
