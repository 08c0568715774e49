"""The stages of sampling against numpy, greedy rows, the end of a row, log-probabilities, and bad logits."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.pallas_kernels.marks import slow
from tests.tokenspeed.sampling.shared import (
    EOS,
    IDS,
    SEEDS,
    SEQUENCES,
    V,
    draw,
    greedy,
    keep,
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

process = jax.jit(sampling.process)


def oracle_process(logits, params, prompt, outputs, eos_ids=EOS):
    logits = logits.astype(np.float64).copy()
    for token, bias in (params.logit_bias or {}).items():
        logits[token] += bias
    if params.allowed_token_ids is not None:
        logits[[t for t in range(len(logits)) if t not in params.allowed_token_ids]] = -np.inf
    if len(outputs) < params.min_tokens:
        logits[[*([] if params.ignore_eos else eos_ids), *params.stop_token_ids]] = -np.inf
    for token in {*prompt, *outputs}:
        factor = params.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token in outputs:
        logits[token] -= params.frequency_penalty
    for token in set(outputs):
        logits[token] -= params.presence_penalty
    return logits


@hypothesis.given(st.data())
def test_bias_masks_and_penalties(data):
    params, prompts, outputs = [], [], []
    for _ in range(2):
        allowed = data.draw(st.none() | st.lists(IDS, min_size=5, max_size=30))
        params.append(
            SamplingParams(
                presence_penalty=data.draw(st.floats(-2, 2)),
                frequency_penalty=data.draw(st.floats(-2, 2)),
                repetition_penalty=data.draw(st.floats(0.5, 2)),
                logit_bias=data.draw(st.dictionaries(IDS, st.floats(-100, 100), max_size=5)),
                # Ids that end no row, so that min_tokens leaves something.
                allowed_token_ids=allowed and [*allowed, 149],
                min_tokens=data.draw(st.integers(0, 8)),
                stop_token_ids=data.draw(st.lists(st.integers(0, 148), max_size=3)),
                ignore_eos=data.draw(st.booleans()),
            )
        )
        prompts.append(data.draw(SEQUENCES))
        outputs.append(data.draw(SEQUENCES))
    logits = normal(data.draw(SEEDS), 2, V)
    plan = SamplingPlan(random=True, bias=True, min_tokens=True, penalties=True, ends=8)
    state = state_of(params, prompts=prompts, outputs=outputs, plan=plan)
    got = process(logits, state, jnp.array([len(o) for o in outputs], jnp.int32))
    for row in range(2):
        expected = oracle_process(logits[row], params[row], prompts[row], outputs[row])
        np.testing.assert_allclose(got[row], expected, rtol=2e-5, atol=2e-5)


FILTERS = [
    dict(top_k=5),
    dict(top_k=120),
    dict(top_p=0.7),
    dict(min_p=0.05),
    dict(top_k=20, top_p=0.9),
    dict(min_p=0.02, top_p=0.95),
    dict(min_p=0.1, top_k=9, top_p=0.6),
]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("kind", [*map(slow, FILTERS[:-1]), FILTERS[-1]], ids=str)
@hypothesis.given(seed=SEEDS, scale=st.floats(0.01, 8), change=st.floats(0.5, 1))
def test_filters(kind, ties, seed, scale, change):
    kind = {name: value if name == "top_k" else value * change for name, value in kind.items()}
    params = SamplingParams(**kind)
    scaled = normal(seed, 1, V, scale=scale)
    scaled = tied(scaled) if ties else scaled
    expected, margin = oracle_keep(scaled[0], params)
    hypothesis.assume(margin > 1e-5)
    kept = np.asarray(keep(scaled, state_of([params])))[0]
    assert (np.isfinite(kept) == expected).all()
    assert (kept[expected] == scaled[0, expected]).all()


def test_filters_see_the_logits_after_the_temperature():
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], np.float32))
    for temperature, kept in ((1.0, {0, 1}), (0.25, {0}), (5.0, {0, 1, 2})):
        state = state_of([SamplingParams(temperature=temperature, top_p=0.6)] * 200, vocab_size=4, eos_ids=())
        tokens, *_ = draw(jnp.broadcast_to(logits, (200, 4)), state, steps(200))
        assert set(np.asarray(tokens).tolist()) == kept


# Greedy rows.


@hypothesis.given(SEEDS, st.booleans())
def test_greedy_is_argmax(seed, ties):
    logits = normal(seed, 4, V)
    logits = tied(logits) if ties else logits
    filters = greedy(top_k=3, top_p=0.1, min_p=0.9)  # these do nothing
    state = state_of([greedy()] * 3 + [filters])
    tokens, _, logprobs, _ = draw(logits, state, steps(4))
    assert (tokens == logits.argmax(-1)).all()
    assert tokens.dtype == jnp.int32 and logprobs is None


def test_plain_greedy_compiles_no_sort_and_no_noise():
    lowered = lambda params: draw.lower(jnp.zeros((2, V)), state_of([params] * 2), steps(2)).as_text()
    stages = ("chlo.top_k", "stablehlo.sort", "cumsum", "threefry", "stablehlo.log", "stablehlo.scatter")
    plain = lowered(greedy(top_k=3, top_p=0.5, min_p=0.1))
    assert not [stage for stage in stages if stage in plain]
    drawn = lowered(SamplingParams(top_p=0.5))
    assert [stage for stage in stages if stage in drawn] == ["threefry", "stablehlo.log"]


def test_greedy_takes_the_penalties():
    logits = jnp.array([[3.0, 2.9, -1.0]])
    one = lambda **p: state_of([greedy(**p)], vocab_size=3, eos_ids=(), outputs=[[0]], prompts=[[1]])
    token = lambda **p: int(draw(logits, one(**p), steps(1, 1))[0][0])
    assert token() == 0
    assert token(presence_penalty=0.2) == 1
    assert token(frequency_penalty=0.2) == 1
    assert token(repetition_penalty=1.2) == 0  # both are divided
    assert token(repetition_penalty=1.2, presence_penalty=0.2) == 1
    assert token(logit_bias={2: 5.0}) == 2
    assert token(allowed_token_ids=[1, 2]) == 1


def test_counts_follow_what_is_drawn():
    logits = jnp.array([[3.0, 2.5, 2.0]] * 2)
    state = state_of([greedy(frequency_penalty=0.4), greedy()], vocab_size=3, eos_ids=())
    drawn = []
    for step in range(5):
        tokens, _, _, state = draw(logits, state, steps(2, step))
        drawn.append(tokens.tolist())
    # The first row: 3.0 2.5 2.0, then 2.6, then 2.2 2.5, 2.2 2.1, 1.8 2.1.
    assert [t[0] for t in drawn] == [0, 0, 1, 0, 1]
    assert [t[1] for t in drawn] == [0] * 5
    assert state.counts.tolist() == [[3, 2, 0], [5, 0, 0]]


# The end of a row.


def test_ids_that_end_are_masked_until_min_tokens():
    favourites = np.zeros((4, V), np.float32)
    favourites[:, [*EOS, 30]] = 50.0
    stop = dict(stop_token_ids=(30,))
    params = [
        greedy(min_tokens=2),
        SamplingParams(min_tokens=2, **stop),
        SamplingParams(min_tokens=2, ignore_eos=True, **stop),
        SamplingParams(**stop),
    ]
    state = state_of(params)
    every = {*EOS, 30}
    for step in range(4):
        for _ in range(5):
            tokens = draw(favourites, state, steps(4, step))[0].tolist()
            if step < 2:
                assert tokens[0] == 30 and tokens[1] not in every and tokens[2] in EOS
            else:
                assert tokens[0] == 7 and tokens[1] in every and tokens[2] in every
            assert tokens[3] in every


def test_finished():
    params = [greedy(stop_token_ids=[30, 7]), greedy(ignore_eos=True), greedy(), greedy(), greedy(), greedy()]
    ends = state_of(params).ends
    tokens = jnp.array([30, 7, 7, 5, 5, 11], jnp.int32)
    step = jnp.array([0, 0, 0, 3, 2, 3], jnp.int32)
    done, reason = jax.jit(sampling.finished)(tokens, step, ends, jnp.full(6, 4, jnp.int32))
    assert done.tolist() == [True, False, True, True, False, True]
    none, stop, length = sampling.RUNNING, sampling.STOPPED, sampling.LENGTH
    assert (none, stop, length) == (0, 1, 2)
    assert reason.tolist() == [stop, none, stop, length, none, stop] and reason.dtype == jnp.int32


# Log-probabilities.


@pytest.mark.slow
@pytest.mark.parametrize("n", [0, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_logprobs_are_of_the_raw_logits(n, ties):
    logits = normal(n, 4, V)
    logits = tied(logits) if ties else logits
    params = [greedy(), SamplingParams(temperature=5.0), SamplingParams(top_k=1), greedy(logit_bias={3: 100})]
    tokens, _, got, _ = draw(logits, state_of(params), steps(4), logprobs=n)
    for row, token in enumerate(np.asarray(tokens)):
        expected = np.log(softmax(logits[row]))
        order = np.lexsort((np.arange(V), -logits[row]))
        np.testing.assert_allclose(got.sampled[row], expected[token], rtol=1e-5)
        assert got.rank[row] == order.tolist().index(token) + 1
        assert got.top_ids[row].tolist() == order[:n].tolist()
        np.testing.assert_allclose(got.top[row], expected[order[:n]], rtol=1e-5)
    assert tokens[3] == 3 and got.rank[0] == 1
    assert got.top_ids.shape == got.top.shape == (4, n)
    assert got.rank.dtype == got.top_ids.dtype == jnp.int32


@pytest.mark.slow
def test_asking_for_logprobs_changes_no_token():
    logits, state = normal(0, 16, V), state_of([SamplingParams(top_p=0.9)] * 16)
    assert (draw(logits, state, steps(16))[0] == draw(logits, state, steps(16), logprobs=5)[0]).all()


# Logits that are not numbers.


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [greedy(), SamplingParams(), SamplingParams(min_p=0.1, top_k=100, top_p=0.5)],
    ids=["greedy", "random", "filtered"],
)
def test_rows_without_a_finite_choice_are_told(params):
    logits = normal(0, 5, V)
    logits[0, [40, 60]] = np.nan
    logits[1] = -np.inf
    logits[2, 50] = np.inf
    logits[3, 10:] = -np.inf
    tokens, finite, _, state = draw(logits, state_of([params] * 5), steps(5))
    assert finite.tolist() == [False, False, False, True, True]
    assert tokens[0] == 40 and tokens[1] == 0 and tokens[2] == 50
    assert 0 <= tokens[3] < 10 and 0 <= tokens[4] < V
    assert draw(normal(0, 5, V), state, steps(5, 1)).finite.all(), "the next step is its own"


@pytest.mark.parametrize("params", [greedy, SamplingParams], ids=["greedy", "random"])
def test_nan_and_infinity_that_are_not_allowed_do_no_harm(params):
    logits = normal(0, 1, V)
    logits[0, [40, 41]] = np.nan, np.inf
    tokens, finite, _, _ = draw(logits, state_of([params(allowed_token_ids=[3, 4])]), steps(1))
    assert tokens[0] in (3, 4) and finite[0]


def test_tiny_temperatures_do_not_overflow():
    logits = normal(0, 4, V) * 100
    tokens, finite, _, _ = draw(logits, state_of([SamplingParams(temperature=1e-30)] * 4), steps(4))
    assert (tokens == logits.argmax(-1)).all() and finite.all()


# Calls that are refused.


@pytest.mark.parametrize(
    "name, change",
    [
        ("logits", dict(logits=jnp.zeros((3, V)))),
        ("logits", dict(logits=jnp.zeros(V))),
        ("logits", dict(logits=jnp.zeros((2, V), jnp.bfloat16))),
        ("state.bias", dict(logits=jnp.zeros((2, V + 1)))),
        ("step", dict(step=steps(3))),
        ("step", dict(step=jnp.zeros(2))),
        ("logprobs", dict(logprobs=-1)),
        ("logprobs", dict(logprobs=V + 1)),
    ],
)
def test_bad_calls(name, change):
    state = state_of([greedy(logit_bias={1: 1.0})] * 2)
    with pytest.raises((ValueError, TypeError), match=f"^{name}: expected"):
        sampling.sample(**(dict(logits=jnp.zeros((2, V)), state=state, step=steps(2)) | change))
