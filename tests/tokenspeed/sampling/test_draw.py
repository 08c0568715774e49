"""The distribution of draws, and rows that do not know of each other, nor of how their steps are divided."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.tokenspeed.sampling.shared import (
    SEEDS,
    SEQUENCES,
    V,
    draw,
    greedy,
    normal,
    oracle_keep,
    softmax,
    state_of,
    steps,
    tied,
)  # fmt: skip
from tokenspeed.sampling import sample as sampling
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.sampling.state import SamplingPlan


def assert_distributed(tokens, probabilities):
    """Pearson's statistic within 6 standard deviations of its mean: df + 6 sqrt(2 df)."""
    counts = np.bincount(np.asarray(tokens), minlength=len(probabilities))
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] * len(tokens)
    assert expected.min() > 5
    degrees = possible.sum() - 1
    assert ((counts[possible] - expected) ** 2 / expected).sum() < degrees + 6 * np.sqrt(2 * degrees)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [{}, dict(temperature=2.0), dict(temperature=0.5, top_p=0.9), dict(top_k=5), dict(min_p=0.2), dict(top_p=0.99)],
    ids=str,
)
@pytest.mark.parametrize("over", ["seeds", "steps", "samples"])
def test_draws_have_the_probabilities(kind, over):
    draws, size = 6000, 12
    params = SamplingParams(seed=None if over == "seeds" else 5, **kind)
    logits = normal(1, size, scale=1.0)
    scaled = logits / params.temperature
    kept, _ = oracle_keep(scaled, params)
    count = np.arange(draws) if over == "samples" else np.zeros(draws, int)
    state = state_of([params] * draws, vocab_size=size, eos_ids=(), samples=count)
    step = jnp.arange(draws, dtype=jnp.int32) if over == "steps" else steps(draws)
    tokens, *_ = draw(jnp.broadcast_to(logits, (draws, size)), state, step)
    assert_distributed(tokens, softmax(np.where(kept, scaled, -np.inf)))


def test_noise_is_standard_gumbel():
    noise = np.asarray(sampling.gumbel(state_of([SamplingParams(seed=1)]).key, steps(1), 200_000))
    assert np.isfinite(noise).all()
    assert abs(noise.mean() - 0.5772) < 0.02  # Euler's constant
    assert abs(noise.var() - np.pi**2 / 6) < 0.04


# Whose token depends on what.


KINDS = [
    greedy(repetition_penalty=1.5),
    SamplingParams(),
    SamplingParams(top_k=5, top_p=0.8),
    SamplingParams(top_k=100, logit_bias={3: 4.0}, min_tokens=3, temperature=0.7),
    SamplingParams(temperature=3.0, top_p=0.9, allowed_token_ids=range(20, 90)),
    SamplingParams(min_p=0.02, presence_penalty=0.5, frequency_penalty=-0.1),
]


@dataclasses.dataclass(frozen=True)
class Row:
    """All that the token of a row may depend on."""

    params: SamplingParams
    seed: int
    step: int
    prompt: tuple[int, ...]
    outputs: tuple[int, ...]
    logits: int
    ties: bool


def tokens_of(rows, plan=None):
    logits = np.stack([normal(r.logits, V) for r in rows])
    logits = np.where([[r.ties] for r in rows], tied(logits), logits)
    state = state_of(
        [r.params for r in rows],
        prompts=[r.prompt for r in rows],
        outputs=[r.outputs for r in rows],
        default_seeds=[r.seed for r in rows],
        plan=plan,
    )
    drawn = draw(logits, state, jnp.array([r.step for r in rows], jnp.int32))
    assert drawn.finite.all()
    return drawn.tokens.tolist()


row_strategy = st.builds(
    Row,
    params=st.sampled_from(KINDS),
    seed=SEEDS,
    step=st.integers(0, 5),
    prompt=SEQUENCES.map(tuple),
    outputs=SEQUENCES.map(tuple),
    logits=SEEDS,
    ties=st.booleans(),
)


EVERYTHING = SamplingPlan(random=True, bias=True, min_tokens=True, penalties=True, min_p=True, top_k=True, top_p=True)


@pytest.mark.slow
@hypothesis.settings(max_examples=6)
@hypothesis.given(st.lists(row_strategy, min_size=6, max_size=6), st.permutations(range(6)))
def test_a_row_knows_nothing_of_the_others(rows, order):
    alone = [tokens_of([row])[0] for row in rows]
    assert tokens_of(rows, EVERYTHING) == alone
    assert tokens_of([rows[i] for i in order], EVERYTHING) == [alone[i] for i in order]


@pytest.mark.slow
def test_the_stages_of_others_change_nothing():
    rows = lambda seed: [Row(params, seed, 2, (1, 2), (3, 3), seed, bool(seed % 2)) for params in KINDS]
    for seed in range(12):
        alone = [tokens_of([row])[0] for row in rows(seed)]
        assert tokens_of(rows(seed)) == alone
        assert tokens_of(rows(seed)[:3]) == alone[:3]


# How a row is continued.


TABLE = normal(9, 40, 40, scale=1.5)


@functools.partial(jax.jit, static_argnames="length")
def chunk(tokens, state, step, length):
    def one(carry, _):
        tokens, state, step = carry
        tokens, _, _, state = sampling.sample(jnp.asarray(TABLE)[tokens], state, step)
        return (tokens, state, step + 1), tokens

    return jax.lax.scan(one, (tokens, state, step), None, length=length)


def generate(params, chunks, **options):
    state = state_of(params, vocab_size=40, eos_ids=(), **options)
    carry, drawn = (jnp.zeros(len(params), jnp.int32), state, steps(len(params))), []
    for length in chunks:
        carry, tokens = chunk(*carry, length=length)
        drawn.append(np.asarray(tokens))
    return np.concatenate(drawn).T


CHUNKED = [SamplingParams(frequency_penalty=0.5), SamplingParams(top_p=0.9, temperature=1.5), greedy()]


@pytest.mark.slow
def test_chunks_change_nothing():
    assert (generate(CHUNKED, [12]) == generate(CHUNKED, [1] * 12)).all()


@pytest.mark.slow
def test_a_resumed_row_goes_on_as_it_would_have():
    whole = generate(CHUNKED, [1] * 12)
    state = state_of(CHUNKED, vocab_size=40, eos_ids=(), outputs=whole[:, :5])
    carry = (jnp.asarray(whole[:, 4]), state, steps(3, 5))
    for step in range(5, 12):
        carry, tokens = chunk(*carry, length=1)
        np.testing.assert_array_equal(tokens[0], whole[:, step])


def test_seeds_and_samples():
    one = lambda seed, sample=0, default=0: generate(
        [SamplingParams(seed=seed)], [12], samples=[sample], default_seeds=[default]
    ).tolist()
    assert one(5) == one(5, default=1)
    assert one(None, default=5) == one(5)
    different = [one(5), one(6), one(5 + 2**32), one(5, 1), one(5, 2), one(6, 1), one(2**64 - 1)]
    assert len({str(tokens) for tokens in different}) == len(different)
    # Without any seed, each state has its own.
    assert (
        generate([SamplingParams()], [12], default_seeds=None) != generate([SamplingParams()], [12], default_seeds=None)
    ).any()
