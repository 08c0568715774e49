"""The library's attention stands in for the blocks: here by its own XLA implementation, on a GPU by cuDNN."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import KVCache
from tests.pallas_kernels.marks import slow
from tokenspeed import LLM, SamplingParams
from tokenspeed.engine import build
from tokenspeed.engine.runner import Runner
from tokenspeed.models import decoder, hf_config
from tokenspeed.models.config import LayerConfig
from tokenspeed.models.decoder import Llama
from tokenspeed.models.flash_attention import flash_attention
from tokenspeed.models.prefill_attention import attend, attend_chunk, resolve_prefill_backend
from tokenspeed.weights.tiny import TINY


@pytest.mark.parametrize("window", [None, slow(1), 7, slow(100)])
@pytest.mark.parametrize("heads, kv_heads", [slow(4, 4), (6, 2), slow(3, 1)])
def test_flash_attention_is_what_the_blocks_compute(window, heads, kv_heads):
    draw = np.random.default_rng(0)
    batch, length, head_dim = 2, 37, 16
    q, k, v = (
        draw.standard_normal((batch, length, n, head_dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads)
    )
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length))
    blocks = jax.jit(functools.partial(attend, window=window))(q, k.swapaxes(1, 2), v.swapaxes(1, 2), positions)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(functools.partial(flash_attention, window=window, implementation="xla"))(q, k, v)
    np.testing.assert_allclose(found, blocks, rtol=0, atol=2e-6)  # a few float32 roundings of values near 1


# --- chunks that begin anywhere

CAPACITY, PAGE = 64, 8
STARTS = (0, 29, 5, 47)
"""Of four sequences: one begins, one ends with the capacity."""
TOKENS = 17
HEAD_DIM = 16


@functools.cache
def long_sequences(heads, kv_heads):
    """float32 q [B, S, N, H] and k, v [B, S, K, H] of whole sequences."""
    draw = np.random.default_rng(heads)
    return tuple(
        draw.standard_normal((len(STARTS), CAPACITY, n, HEAD_DIM)).astype(np.float32)
        for n in (heads, kv_heads, kv_heads)
    )


def cached(k, v, used, paged):
    """(cache, page table) of the first `used` positions of each sequence; all else is NaN. Pages lie in any order."""
    k, v = (
        np.where(np.arange(CAPACITY)[:, None, None] < np.array(used)[:, None, None, None], x, np.nan) for x in (k, v)
    )
    if not paged:
        return KVCache(k=jnp.asarray(k.swapaxes(1, 2)), v=jnp.asarray(v.swapaxes(1, 2))), None
    table = np.random.default_rng(3).permutation(len(STARTS) * CAPACITY // PAGE).reshape(len(STARTS), -1)
    pages = []
    for x in (k, v):
        cut = x.reshape(-1, PAGE, *x.shape[2:]).swapaxes(1, 2)
        pages.append(np.empty_like(cut))
        pages[-1][table.ravel()] = cut
    return KVCache(k=jnp.asarray(pages[0]), v=jnp.asarray(pages[1])), jnp.asarray(table, jnp.int32)


@pytest.mark.parametrize("window", [None, slow(1), slow(2), 7, slow(30), slow(63), slow(64), slow(1000)])
@pytest.mark.parametrize(
    "heads, kv_heads, paged", [(6, 2, True), slow(3, 3, True), slow(4, 1, False), slow(4, 2, False)]
)
def test_a_chunk_that_begins_anywhere(window, heads, kv_heads, paged):
    """What the chunk's tokens see is what they would see if all of their sequence had come at once."""
    q, k, v = long_sequences(heads, kv_heads)
    places = np.array(STARTS)[:, None] + np.arange(TOKENS)  # [B, T]
    rows = np.arange(len(STARTS))[:, None]
    whole = attend(
        q, k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.asarray(np.tile(np.arange(CAPACITY), (4, 1))), window=window
    )
    cache, table = cached(k, v, STARTS, paged)
    chunk = jax.jit(
        functools.partial(attend_chunk, window=window, capacity=CAPACITY, page_table=table, implementation="xla")
    )
    with jax.default_matmul_precision("highest"):
        found = chunk(q[rows, places], k[rows, places], v[rows, places], cache, jnp.array(STARTS, jnp.int32))
    # A few float32 roundings of values near 1.
    np.testing.assert_allclose(found, np.asarray(whole)[rows, places], rtol=0, atol=3e-6)


@pytest.mark.slow
def test_a_chunk_whose_padding_reaches_beyond_the_capacity():
    """Its last tokens are no tokens: they may be anything finite, and change nothing before them."""
    q, k, v = long_sequences(6, 2)
    start, real = CAPACITY - 5, 5
    cache, _ = cached(k, v, (start,) * 4, paged=False)
    chunks = [
        np.pad(x[:, start:], ((0, 0), (0, TOKENS - real), (0, 0), (0, 0)), constant_values=9.0) for x in (q, k, v)
    ]
    places = jnp.broadcast_to(jnp.arange(start, CAPACITY), (4, real))
    for window in (None, 7):
        found = attend_chunk(
            *chunks, cache, jnp.full((4,), start, jnp.int32), window=window, capacity=CAPACITY, implementation="xla"
        )
        whole = attend(q[:, start:], k.swapaxes(1, 2), v.swapaxes(1, 2), places, window=window)
        np.testing.assert_allclose(found[:, :real], whole, rtol=0, atol=3e-6)  # as above
        assert np.isfinite(found).all()


@pytest.fixture
def flash_by_xla(monkeypatch):
    """The model's flash attention by XLA, which any machine runs."""
    monkeypatch.setattr(decoder, "attend_chunk", functools.partial(attend_chunk, implementation="xla"))


@pytest.mark.slow
@pytest.mark.parametrize("window, paged", [(None, True), (None, False), (9, True), (9, False)])
def test_the_model_in_chunks_of_ragged_sequences(window, paged, flash_by_xla):
    """Three chunks at the chosen backend against all tokens at once; padding leaves the poisoned cache as it was."""
    c = dataclasses.replace(hf_config.from_folder(TINY), max_positions=CAPACITY)
    c = dataclasses.replace(c, layers=tuple(LayerConfig(window=window) for _ in c.layers[:2]))
    model = Llama(c, rngs=nnx.Rngs(0))
    lengths = np.array([41, 7, 23])
    tokens = np.random.default_rng(0).integers(0, c.vocab_size, (3, 48))
    rope = model.rope_tables(CAPACITY)
    pages, page = (3 * CAPACITY // PAGE, PAGE) if paged else (3, CAPACITY)
    table = jnp.asarray(np.random.default_rng(1).permutation(pages).reshape(3, -1), jnp.int32) if paged else None
    nan = jnp.full((pages, c.num_kv_heads, page, c.head_dim), jnp.nan)

    def prefill(backend, cuts):
        caches, found = [KVCache(k=nan, v=nan)] * 2, []
        for begin, end in itertools.pairwise(cuts):
            places = np.arange(begin, end)
            start = None if begin == 0 else jnp.where(begin < lengths, begin, 0)
            how = dict(capacity=CAPACITY, prefill_backend=backend, implementation="xla")
            x, caches = jax.jit(functools.partial(model.prefill, **how))(
                caches,
                tokens[:, begin:end],
                jnp.where(places < lengths[:, None], places, -1),
                rope,
                start=start,
                page_table=table,
            )
            found.append(x)
        return jnp.concatenate(found, axis=1), caches

    whole, expected = prefill("xla", (0, 48))
    with jax.default_matmul_precision("highest"):
        chunks, caches = prefill("cudnn", (0, 16, 17, 48))
    real = np.arange(48) < lengths[:, None]
    assert np.isfinite(chunks).all()
    np.testing.assert_allclose(chunks[real], whole[real], rtol=0, atol=2e-5)  # two layers of float32 roundings
    for one, other in zip(jax.tree.leaves(caches), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)  # NaN where nothing was written, in both


@pytest.mark.slow
@pytest.mark.parametrize("window, paged", [(None, True), (9, False)])
def test_a_chunk_sees_its_own_keys_as_they_are_stored(window, paged, flash_by_xla):
    """In 8 bits: cut anywhere, at either backend, the result is that of a whole prompt, and not that of float32."""
    c = dataclasses.replace(hf_config.from_folder(TINY), max_positions=CAPACITY)
    c = dataclasses.replace(c, layers=tuple(LayerConfig(window=window) for _ in c.layers[:2]))
    model = Llama(c, rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(0, c.vocab_size, (2, 48))
    pages, page = (2 * CAPACITY // PAGE, PAGE) if paged else (2, CAPACITY)
    table = jnp.asarray(np.random.default_rng(1).permutation(pages).reshape(2, -1), jnp.int32) if paged else None

    def prefill(backend, cuts, dtypes, **scales):
        caches = [KVCache.zeros(pages, c.num_kv_heads, page, c.head_dim, dtypes[0], v_dtype=dtypes[1], **scales)] * 2
        found = []
        for begin, end in itertools.pairwise(cuts):
            how = dict(capacity=CAPACITY, prefill_backend=backend, implementation="xla")
            x, caches = jax.jit(functools.partial(model.prefill, **how))(
                caches, tokens[:, begin:end], jnp.tile(jnp.arange(begin, end), (2, 1)), model.rope_tables(CAPACITY),
                start=jnp.full(2, begin) if begin else None, page_table=table,
            )  # fmt: skip
            found.append(x)
        return np.concatenate(found, axis=1)

    def rms(x):
        return np.sqrt(np.mean(np.square(x)))

    scale = jnp.linspace(0.02, 0.03, c.num_kv_heads)
    stored = dict(dtypes=("int8", "float8_e4m3fn"), k_scale=scale, v_scale=scale)
    whole, plain = prefill("xla", (0, 48), **stored), prefill("xla", (0, 48), ("float32", "float32"))
    lost = rms(whole - plain)
    with jax.default_matmul_precision("highest"):
        for backend, cuts in (("cudnn", (0, 48)), ("cudnn", (0, 16, 17, 48)), ("xla", (0, 16, 17, 48))):
            # Float32 roundings, by which a number here and there is rounded to the other side.
            assert rms(prefill(backend, cuts, **stored) - whole) < 0.1 * lost, (backend, cuts)


@pytest.mark.slow
def test_long_prompts_of_an_llm_run_on_the_chosen_backend(flash_by_xla, monkeypatch):
    """All chunks of them: prompts of one batch that end in the first step of prefill, in the second and in the third.

    Steps are of 64 tokens, the least that they are rounded up to.
    """
    monkeypatch.setattr(build, "PREFILL_TOKENS", 64)
    one = LLM.from_pretrained(TINY, dtype="float32", implementation="xla", prefix_caching=False)
    draw = np.random.default_rng(2)
    prompts = [draw.integers(0, one.model.config.vocab_size, length).tolist() for length in (9, 60, 100)]
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=1)
    expected = one.generate(prompts, params)
    other = LLM(one.model, one.tokenizer, implementation="xla", prefix_caching=False)
    other.options = dataclasses.replace(other.options, prefill_backend="cudnn")
    chunks, backends = [], []
    real, prefill = Runner.chunk, Llama.prefill

    def chunk(runner, given, shape):
        chunks.append([(part.start, len(part.tokens)) for part in given])
        return real(runner, given, shape)

    def traced(model, *operands, **static):
        backends.append((static["prefill_backend"], static["start"] is None))
        return prefill(model, *operands, **static)

    monkeypatch.setattr(Runner, "chunk", chunk)
    monkeypatch.setattr(Llama, "prefill", traced)
    for a, b in zip(expected, other.generate(prompts, params), strict=True):
        assert a.token_ids == b.token_ids
        np.testing.assert_allclose(
            [x.logprob for x in a.logprobs], [x.logprob for x in b.logprobs], rtol=0, atol=1e-4
        )  # float32 sums in another order
    assert max(start for call in chunks for start, _ in call) > 0 and len(chunks) > 2
    assert sum(length for call in chunks for _, length in call) == sum(map(len, prompts))
    assert set(backends) == {("cudnn", True), ("cudnn", False)}, "of prompts that begin, and of those that go on"


# --- whose attention


@pytest.mark.parametrize(
    "implementation, dtype, head_dim, expected",
    [
        ("triton", "bfloat16", 128, "cudnn"),
        ("triton", "float16", 80, "cudnn"),
        ("triton", "float32", 128, "xla"),
        ("triton", "bfloat16", 256, "xla"),
        ("triton", "bfloat16", 12, "xla"),
        ("xla", "bfloat16", 128, "xla"),
        ("interpret", "bfloat16", 128, "xla"),
    ],
)
def test_whose_attention_runs(implementation, dtype, head_dim, expected):
    how = dict(implementation=implementation, dtype=dtype, head_dim=head_dim)
    assert resolve_prefill_backend(None, **how) == expected
    assert resolve_prefill_backend("xla", **how) == "xla"
    if expected == "cudnn":
        assert resolve_prefill_backend("cudnn", **how) == "cudnn"
    else:
        with pytest.raises(ValueError, match=r"^prefill_backend: 'cudnn' needs an NVIDIA GPU"):
            resolve_prefill_backend("cudnn", **how)
    with pytest.raises(ValueError, match=r"^prefill_backend: expected None or one of cudnn, xla, got 'flash'"):
        resolve_prefill_backend("flash", **how)
