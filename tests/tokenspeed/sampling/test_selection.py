"""Top-k and top-p against a sort, at every k and over p from 0 to 1."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import top_k_top_p
from tests.tokenspeed.sampling.shared import V, draw, keep, normal, state_of, steps, tied
from tokenspeed.sampling.params import SamplingParams

P = (0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 0.999999, 1 - 2.0**-24, 1.0)
# exp of numpy and of XLA may differ by 2**-22 of itself, so that the sum may fall on the other side of top-p.
ROUNDING = 2.0**-22


def selected(scaled, top_k, top_p):
    as_array = lambda values, dtype: None if values is None else jnp.asarray(values, dtype)
    how = as_array(top_k, jnp.int32), as_array(top_p, jnp.float32)
    return top_k_top_p(jnp.asarray(scaled), *how, implementation="xla")


def in_order(scaled):
    """The ids of each row, NaN first, then by logit, of equals the lowest first."""
    return np.lexsort((-scaled, ~np.isnan(scaled)), axis=-1)


def counts(values, top_k, top_p):
    """How many of each row in order are kept, at least and at most: int [B] both, the same where exp does not round."""
    vocabulary = values.shape[1]
    with np.errstate(invalid="ignore"):
        weights = np.nan_to_num(np.exp(values - values[:, :1]))
    weights = np.where(np.arange(vocabulary) < top_k[:, None], weights, np.float32(0))
    exact = np.isin(weights, (0, 1)).all(axis=-1)
    bits = 31 - (vocabulary - 1).bit_length()
    mass = np.float32(0)
    for digit in range(1, 4):
        weights = weights * np.float32(2.0**bits)
        whole = np.floor(weights)
        weights = weights - whole
        sums = np.cumsum(whole.astype(np.uint64), axis=-1)
        mass = mass + sums.astype(np.float32) * np.float32(2.0 ** (-bits * digit))
    total = mass[:, -1:]
    for sign in (-1, 1):
        short = mass < top_p[:, None] * total + sign * np.where(exact[:, None], 0, ROUNDING * total)
        yield np.where(top_p < 1, np.minimum(1 + short.sum(axis=-1), top_k), top_k)


def assert_selected(scaled, *ways):
    """Checks rows by both stages of each (top_k, top_p); None where one is off in all."""
    rows, vocabulary = scaled.shape
    order = in_order(scaled)
    values = np.take_along_axis(scaled, order, axis=-1)
    for top_k, top_p in ways:
        found = np.asarray(selected(scaled, top_k, top_p))
        top_k = np.full(rows, vocabulary) if top_k is None else top_k
        top_p = np.ones(rows, np.float32) if top_p is None else top_p
        least, most = counts(values, top_k, top_p)
        count = found.sum(axis=-1)
        first = np.arange(vocabulary) < count[:, None]
        np.testing.assert_array_equal(np.take_along_axis(found, order, axis=-1), first)
        assert ((least <= count) & (count <= most)).all()


def flat(seed, *shape):
    return np.where(normal(seed, *shape) > 0, np.float32(0), np.float32(-0.0))


def masked(seed, *shape):
    return np.where(normal(seed, *shape) > -2, -np.inf, normal(seed + 1, *shape)).astype(np.float32)


def broken(seed, *shape):
    """NaN of either sign, and infinity."""
    logits = tied(normal(seed, *shape))
    return np.select([logits == 2, logits == -2, logits == 3], [np.nan, -np.nan, np.inf], logits).astype(np.float32)


LOGITS = {
    "random": normal,
    "tied": lambda *arguments: tied(normal(*arguments)),
    "peaked": lambda *arguments: normal(*arguments, scale=30.0),
    "flat": flat,
    "close": lambda *arguments: normal(*arguments, scale=1e-6) + np.float32(1),
    "two values": lambda *arguments: np.where(normal(*arguments) > 0, np.float32(-500), np.float32(-3)),
    "masked": masked,
    "all masked": lambda seed, *shape: np.full(shape, -np.inf, np.float32),
    "broken": broken,
}


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("vocab_size", [2, V, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 5, 17))])
def test_every_k_and_p(vocab_size, kind):
    top_k, top_p = (grid.ravel() for grid in np.meshgrid(np.arange(1, vocab_size + 1), np.float32(P)))
    scaled = LOGITS[kind](vocab_size, top_k.size, vocab_size)
    assert_selected(scaled, (top_k, top_p))


@pytest.mark.slow
@pytest.mark.usefixtures("programs_run_often")
@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("vocab_size", [4_097, 128_256])
def test_large_vocabularies(vocab_size, kind):
    top_k = np.array([1, 50, 1024, 4_000, vocab_size - 1, vocab_size, vocab_size, vocab_size])
    top_p = np.float32([1.0, 0.9, 0.999, 0.1, 1 - 2.0**-24, 0.5, 0.95, 1.0])
    scaled = LOGITS[kind](0, top_k.size, vocab_size)
    assert_selected(scaled, (top_k, None), (None, top_p), (top_k, top_p))


@pytest.mark.slow
def test_a_row_depends_neither_on_its_neighbours_nor_on_their_stages():
    scaled = tied(normal(0, 4, V, scale=4.0)) / 2
    top_k, top_p = np.array([V, 20, V, 20]), np.float32([1, 1, 0.8, 0.8])
    together = np.asarray(selected(scaled, top_k, top_p))
    alone = [
        np.ones((1, V), bool),
        selected(scaled[1:2], top_k[1:2], None),
        selected(scaled[2:3], None, top_p[2:3]),
        selected(scaled[3:], top_k[3:], top_p[3:]),
    ]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    assert together.sum(axis=-1)[0] == V


def test_one_program_for_every_top_k_and_top_p():
    scaled = normal(0, 2, V)
    one, other = (state_of([SamplingParams(**p)] * 2) for p in (dict(top_k=1, top_p=0.1), dict(top_k=140, top_p=0.99)))
    assert one.plan == other.plan
    text = keep.lower(scaled, one).as_text()
    assert text == keep.lower(scaled, other).as_text()
    assert not [loop for loop in ("top_k", "sort", "cumsum", "scatter") if f".{loop}" in text]


@pytest.mark.parametrize("top_p, count", [(0.5, 4), (0.51, 5), (0.125, 1), (1e-50, 1), (0.9999, 8), (1.0, 8)])
def test_top_p_of_equals_keeps_the_lowest_ids(top_p, count):
    kept = keep(jnp.zeros((1, 8)), state_of([SamplingParams(top_p=top_p)], vocab_size=8, eos_ids=()))
    assert np.isfinite(kept[0]).tolist() == [True] * count + [False] * (8 - count)


def test_top_k_of_equals_keeps_the_lowest_ids():
    logits = jnp.array([[0.0, 1.0, -0.0, 0.0, 1.0, -1.0, -0.0, 0.0]])
    state = state_of([SamplingParams(top_k=4)], vocab_size=8, eos_ids=())
    tokens = {int(draw(logits, state, steps(1, t))[0][0]) for t in range(100)}
    assert tokens == {0, 1, 2, 4}


@pytest.mark.slow
@pytest.mark.parametrize("top_k, top_p", [(1, 1.0), (0, 1e-6), (3, 1e-6)])
def test_the_most_likely_token_always_stays(top_k, top_p):
    logits = tied(normal(3, 16, V))
    tokens, *_ = draw(logits, state_of([SamplingParams(top_k=top_k, top_p=top_p)] * 16), steps(16))
    assert (tokens == logits.argmax(-1)).all()
