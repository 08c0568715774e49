"""An engine whose keys and values are in 8 bits: the tokens are those of a plain loop over such a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KVCache
from tokenspeed import LLM, SamplingParams
from tokenspeed.engine.build import STEPS, offline
from tokenspeed.models import memory
from tokenspeed.models.kv_dtypes import KVDtypes, parse
from tokenspeed.models.kv_scales import SEED, scales_for
from tokenspeed.weights.random import random_model

PROMPTS = ("Once upon a time there was a little dog who", "The cat", "One day, a girl named Lily went to the park.")
GREEDY = SamplingParams(temperature=0.0, max_tokens=STEPS + 1, ignore_eos=True, logprobs=0)
"""Of one call of decode behind the first token: steps one by one are a program more."""
CAPACITY = 64
CLOSE = 1e-3
"""Of log-probabilities: sums in another order are nearer by far, but may round a number the other way."""


@functools.cache
def model():
    return LLM.from_pretrained("tiny", implementation="xla", max_context=CAPACITY).model


@functools.cache
def llm(kv_dtype):
    plain = LLM.from_pretrained("tiny", implementation="xla", max_context=CAPACITY)
    return LLM(model(), plain.tokenizer, implementation="xla", max_context=CAPACITY, kv_dtype=kv_dtype)


@jax.jit
def advance(model, caches, token, position):
    """(the most likely next token and its log-probability, the caches) of a token [1, 1] at a position."""
    positions = jnp.full((1, 1), position, jnp.int32)
    x, caches = model.prefill(caches, token, positions, model.rope_tables(CAPACITY), capacity=CAPACITY)
    likely = jax.nn.log_softmax(model.logits(x[:, -1:]))
    return (jnp.argmax(likely, axis=-1).astype(jnp.int32), likely.max()), caches


@functools.cache
def plain_loop(kv_dtype, prompt):
    """Tokens, and their log-probabilities."""
    c, kv = model().config, parse("kv_dtype", kv_dtype, model().dtype)
    scales = scales_for(model(), kv)
    caches = [
        KVCache.zeros(1, c.num_kv_heads, CAPACITY, c.head_dim, kv.k, v_dtype=kv.v, **scales.of_layer(i))
        for i in range(c.num_layers)
    ]
    ids = llm(kv_dtype).encode(prompt)
    found = []
    for position in range(len(ids) + GREEDY.max_tokens - 1):
        token = jnp.full((1, 1), ids[position], jnp.int32) if position < len(ids) else found[-1][0]
        drawn, caches = advance(model(), caches, token, position)
        found += [drawn] if position >= len(ids) - 1 else []
    return [int(token[0, 0]) for token, _ in found], [float(likely) for _, likely in found]


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", ["int8", "fp8", "auto/int8", "fp8/auto"])
def test_tokens_are_those_of_a_plain_loop(kv_dtype):
    completions = llm(kv_dtype).generate(list(PROMPTS), GREEDY)
    for prompt, found in zip(PROMPTS, completions, strict=True):
        tokens, likely = plain_loop(kv_dtype, prompt)
        assert found.token_ids == tokens
        np.testing.assert_allclose([one.logprob for one in found.logprobs], likely, rtol=0, atol=CLOSE)


@pytest.mark.slow
def test_the_loop_can_tell_caches_apart():
    likely = [plain_loop(kv_dtype, PROMPTS[0])[1] for kv_dtype in ("auto", "int8", "fp8")]
    for i, one in enumerate(likely):
        for other in likely[:i]:
            assert np.abs(np.subtract(one, other)).max() > 3 * CLOSE


@pytest.mark.slow
def test_a_found_prefix_gives_the_same_tokens():
    """Its pages were filled by another chunk than the one that would have computed it."""
    prompt = PROMPTS[0] + " lived in a house with a very big garden, where he liked to play every day with a red ball. "
    long = LLM(model(), llm("auto").tokenizer, implementation="xla", max_context=256, kv_dtype="int8")
    ids = (long.encode(prompt) * 5)[:150]
    (first,) = long.generate([ids], GREEDY)
    (again,) = long.generate([ids], GREEDY)
    assert first.token_ids == again.token_ids
    assert again.cached_tokens > first.cached_tokens == 0


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_a_prompt_that_is_not_finite_in_its_middle_is_told(kv_dtype):
    """Though int8 holds no NaN by which later tokens would see it."""
    config = dataclasses.replace(model().config, tied=False, max_positions=max(CAPACITY, 300))
    broken = random_model(config, "float32", 0)
    sample = np.random.default_rng(SEED).integers(0, config.vocab_size, CAPACITY, np.int32)  # by which scales are found
    bad = next(token for token in range(9, config.vocab_size) if token not in sample)
    broken.embedding[...] = broken.embedding[...].at[bad].set(jnp.nan)
    one = LLM(broken, implementation="xla", kv_dtype=kv_dtype, batch_invariant=True)  # in chunks of 256
    params = dataclasses.replace(GREEDY, max_tokens=1)
    assert one.generate([[3, 4, 5]], params)[0].token_ids
    for prompt in ([3, bad, 4, 5], [3, bad] + 290 * [4]):
        with pytest.raises(FloatingPointError, match="logits are not finite"):
            one.generate([prompt], params)
        assert one.generate([290 * [5]], params)[0].token_ids, "of another sequence in its slot nothing is said"


def test_a_pool_counts_the_bytes_that_are_stored():
    config, pages = model().config, {}
    for kv_dtype in ("auto", "int8", "auto/fp8"):
        options = LLM(model(), max_context=CAPACITY, kv_bytes=1 << 20, implementation="xla", kv_dtype=kv_dtype).options
        engine = offline(model(), options)
        cache = engine.runner.batch.caches[0]
        pages[kv_dtype] = engine.pool.pages
        assert len(engine.runner.batch.caches) * (cache.k.nbytes + cache.v.nbytes) <= 1 << 20
    assert pages["int8"] == 4 * pages["auto"]  # of float32
    assert pages["auto/fp8"] == int(pages["auto"] * 8 / 5)
    whole, eighth = (
        memory.decode_bytes(config, dtype="float32", context=100, batch=2, kv=kv)
        for kv in (None, parse("kv_dtype", "int8", "float32"))
    )
    assert whole - eighth == 200 * config.kv_bytes_per_token(3)
    assert memory.plan(config, dtype="float32", context=10, batch=2, kv=KVDtypes.of("int8")).kv_bytes == (
        20 * config.kv_bytes_per_token(1)
    )


@pytest.mark.parametrize("kv_dtype", ["fp16", "int8/", "auto/auto/auto", None])
def test_what_is_not_supported_is_refused(kv_dtype):
    with pytest.raises(ValueError, match="kv_dtype: expected auto, fp8 or int8, or two of them for keys/values"):
        LLM(model(), implementation="xla", kv_dtype=kv_dtype)
