"""The whole model on a GPU: decode by the Triton kernels against goldens, against XLA, and in generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KVCache, attention_counters
from tests.tokenspeed.models import test_goldens as goldens
from tests.tokenspeed.models import textbook
from tests.tokenspeed.shared import GOLDENS, folder
from tokenspeed import LLM, SamplingParams
from tokenspeed.models import hf_config, prefill_attention
from tokenspeed.models.config import LayerConfig, ModelConfig, Rope

CONFIG = ModelConfig(
    family="llama", vocab_size=4099, d_model=512, d_ff=1376, num_heads=8, num_kv_heads=2, head_dim=64,
    max_positions=2048, eps=1e-5, rope=Rope(theta=10000.0),
    layers=(LayerConfig(), LayerConfig(window=48), LayerConfig()), dtype="bfloat16", qkv_bias=True,
)  # fmt: skip


@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize("page_size", [goldens.CAPACITY, 16])
def test_token_by_token_against_goldens(name, page_size, implementation):
    model, expected = goldens.model_of(name), goldens.golden(name)
    tokens, rope = expected["greedy"].astype(np.int32), model.rope_tables(goldens.CAPACITY)
    state, counters = goldens.caches(model, 2, page_size), attention_counters(2, model.config.num_kv_heads)
    table = None
    if page_size != goldens.CAPACITY:
        table = jnp.asarray(np.random.default_rng(0).permutation(2 * goldens.CAPACITY // 16).reshape(2, -1), jnp.int32)
    for t in range(tokens.shape[1] - 1):
        found, best, state, counters = goldens.step(
            model, state, tokens[:, t : t + 1], goldens.ascending(t, t + 1, 2), rope, table, counters, implementation
        )
        if t < 48:
            np.testing.assert_allclose(found, expected["logits"][:, t], rtol=0, atol=goldens.TOLERANCE)
        two = np.sort(np.asarray(found), axis=-1)[:, -2:]
        sure = (two[:, 1] - two[:, 0] > 2 * goldens.TOLERANCE) & (t >= 47)
        np.testing.assert_array_equal(np.asarray(best)[sure], tokens[sure, t + 1])


@pytest.mark.parametrize("name", GOLDENS)
def test_bfloat16_is_as_good_as_casting_is(name, implementation):
    """Of decode: the RMS error over draws, against a textbook that rounds weights and activations to bfloat16."""
    path = folder("goldens", name)
    config, weights = hf_config.from_folder(path), textbook.tensors(path)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (8, 32)).astype(np.int32)
    truth, casting = (textbook.logits(weights, config, tokens, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    model = goldens.model_of(name, "bfloat16")
    state, rope, found = goldens.caches(model, 8), model.rope_tables(goldens.CAPACITY), []
    for t in range(tokens.shape[1]):
        logits, _, state, _ = goldens.step(
            model, state, tokens[:, t : t + 1], goldens.ascending(t, t + 1, 8), rope, None, None, implementation
        )
        found.append(logits)

    def rms(x):
        return float(jnp.sqrt(jnp.mean((x - truth) ** 2)))

    assert rms(jnp.stack(found, axis=1)) <= 1.5 * rms(casting)


def generators(dtype, implementation="triton"):
    """The same random weights behind the kernels and the XLA implementation, large enough that tokens vary."""
    fused = LLM.random(CONFIG, dtype=dtype, implementation=implementation)
    fused.model = jax.tree.map(lambda x: (3 * x.astype("float32")).astype(x.dtype) if x.ndim > 1 else x, fused.model)
    return fused, LLM(fused.model, implementation="xla")


def test_generation_agrees_with_xla(implementation):
    """float32, greedy, ragged prompts in a full batch; a tie within the tolerance may part two texts, so most agree."""
    fused, xla = generators("float32", implementation)
    draw = np.random.default_rng(1)
    prompts = [draw.integers(0, CONFIG.vocab_size, size).tolist() for size in (1, 900, 33, 5, 64, 300, 17, 2)]
    params = SamplingParams(temperature=0.0, max_tokens=40)
    pairs = zip(fused.generate(prompts, params), xla.generate(prompts, params), strict=True)
    assert sum(a.token_ids == b.token_ids for a, b in pairs) >= 7


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_do_not_affect_each_other(dtype, implementation):
    fused, _ = generators(dtype, implementation)
    draw = np.random.default_rng(2)
    prompts = [draw.integers(0, CONFIG.vocab_size, size).tolist() for size in (3, 70, 12, 1, 40, 8, 25, 16)]
    params = SamplingParams(temperature=0.8, top_p=0.95, seed=3, max_tokens=24, logprobs=1)
    together = [c.token_ids for c in fused.generate(prompts, params)]
    others = [draw.integers(0, CONFIG.vocab_size, 70).tolist() for _ in range(7)]
    for i in (0, 3, 4):
        found = fused.generate([*others[:i], prompts[i], *others[i:]], params)[i]
        assert found.token_ids == together[i]


def test_the_documented_text(implementation):
    path = folder("checkpoints", "stories260K")
    llm = LLM.from_pretrained(path, implementation=implementation)
    (whole,) = llm.generate([[1]], SamplingParams(temperature=0.0, max_tokens=None))
    assert whole.text.startswith((path / "greedy.txt").read_text().rstrip("\n"))
    (again,) = llm.generate([[1]], dataclasses.replace(SamplingParams(temperature=0.0, max_tokens=64)))
    assert whole.token_ids[:64] == again.token_ids


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_flash_attention_against_the_blocks(window, head_dim, compiled):
    keys, (batch, length, heads, kv_heads) = jax.random.split(jax.random.key(0), 3), (3, 777, 8, 2)
    q, k, v = (
        jax.random.normal(key, (batch, length, n, head_dim), jnp.bfloat16)
        for key, n in zip(keys, (heads, kv_heads, kv_heads), strict=True)
    )
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    exact = (x.astype(jnp.float32) for x in (q, jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)))
    truth = prefill_attention.attend(*exact, positions, window=window)
    blocks = prefill_attention.attend(q, jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2), positions, window=window)
    found = prefill_attention.flash_attention(q, k, v, window=window)

    def rms(x):
        return float(jnp.sqrt(jnp.mean((x.astype(jnp.float32) - truth) ** 2)))

    assert rms(found) <= 1.5 * rms(blocks)


@pytest.mark.parametrize("window", [None, 100])
def test_a_chunk_that_begins_anywhere_against_the_blocks(window, compiled):
    """Also behind keys and values that are NaN from where the chunk begins."""
    starts, tokens, capacity, heads, kv_heads, head_dim = (0, 777, 31, 1024), 200, 1280, 8, 2, 128
    keys = jax.random.split(jax.random.key(1), 3)
    q, k, v = (
        jax.random.normal(key, (len(starts), capacity, n, head_dim), jnp.bfloat16)
        for key, n in zip(keys, (heads, kv_heads, kv_heads), strict=True)
    )
    start = jnp.array(starts, jnp.int32)
    places = start[:, None] + jnp.arange(tokens)
    rows = jnp.arange(len(starts))[:, None]
    k_cache, v_cache = (jnp.moveaxis(x, 1, 2) for x in (k, v))
    exact = (x.astype(jnp.float32) for x in (q[rows, places], k_cache, v_cache))
    truth = prefill_attention.attend(*exact, places, window=window)
    blocks = prefill_attention.attend(q[rows, places], k_cache, v_cache, places, window=window)
    before = jnp.arange(capacity)[:, None] < start[:, None, None, None]
    cache = KVCache(k=jnp.where(before, k_cache, jnp.nan), v=jnp.where(before, v_cache, jnp.nan))
    found = prefill_attention.attend_chunk(
        q[rows, places], k[rows, places], v[rows, places], cache, start, window=window, capacity=capacity
    )

    def rms(x):
        return float(jnp.sqrt(jnp.mean((x.astype(jnp.float32) - truth) ** 2)))

    assert rms(found) <= 1.5 * rms(blocks)


def test_prefill_by_cudnn_and_by_blocks(compiled):
    """bfloat16, ragged prompts: the same first tokens' log-probabilities but for rounding."""
    triton, _ = generators("bfloat16")
    plain = LLM(triton.model, implementation="triton", prefill_backend="xla")
    assert triton.prefill_backend == "cudnn"
    draw = np.random.default_rng(5)
    prompts = [draw.integers(0, CONFIG.vocab_size, size).tolist() for size in (1500, 3, 700, 64)]
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=5)
    for a, b in zip(triton.generate(prompts, params), plain.generate(prompts, params), strict=True):
        one, other = a.logprobs[0].top, b.logprobs[0].top
        both = sorted(set(one) & set(other))
        assert len(both) >= 3
        np.testing.assert_allclose([one[i] for i in both], [other[i] for i in both], rtol=0, atol=0.1)
