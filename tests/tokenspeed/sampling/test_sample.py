"""Sampling: each stage against numpy, the distribution of draws, and rows that do not know of each other."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from tokenspeed.sampling import sample as sampling
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.sampling.state import SamplingPlan, SamplingRows, make_plan, make_rows, make_state, set_rows

SEEDS = st.integers(0, 2**16)
V = 150  # more than MIN_RANKED, so that ranking few and ranking all differ
EOS = (7, 11)
draw = jax.jit(sampling.sample, static_argnames="logprobs")
process = jax.jit(sampling.process)
keep = jax.jit(sampling.keep)


def greedy(**params):
    return SamplingParams(temperature=0, **params)


def state_of(params, *, prompts=None, vocab_size=V, eos_ids=EOS, seed=0, **options):
    prompts = [()] * len(params) if prompts is None else prompts
    options.setdefault("default_seeds", range(seed, seed + len(params)))
    return make_state(params, prompts, vocab_size, eos_ids, **options)


def steps(rows, step=0):
    return jnp.full(rows, step, jnp.int32)


def normal(seed, *shape, scale=2.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def tied(logits):
    """Few distinct values, so that edges fall among equals."""
    return np.round(logits)


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


# The oracle, one row at a time, in float64 where something is summed.


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


def oracle_keep(scaled, params):
    """(bool [V], how far the nearest decision was from going the other way)."""
    order = np.lexsort((np.arange(len(scaled)), -scaled))
    probabilities = softmax(scaled)[order]
    ratio = probabilities / probabilities[0]
    count = (ratio >= params.min_p).sum()
    margin = np.abs(ratio / params.min_p - 1).min() if params.min_p else 1.0
    if params.top_k:
        count = min(count, params.top_k)
    if params.top_p < 1:
        mass = np.cumsum(probabilities[:count]) / probabilities[:count].sum()
        count = np.searchsorted(mass, params.top_p) + 1
        margin = min(margin, np.abs(mass - params.top_p).min())
    return np.isin(np.arange(len(scaled)), order[:count]), margin


ids = st.integers(0, V - 1)
sequences = st.lists(ids, max_size=12)


@hypothesis.given(st.data())
def test_bias_masks_and_penalties(data):
    params, prompts, outputs = [], [], []
    for _ in range(2):
        allowed = data.draw(st.none() | st.lists(ids, min_size=5, max_size=30))
        params.append(
            SamplingParams(
                presence_penalty=data.draw(st.floats(-2, 2)),
                frequency_penalty=data.draw(st.floats(-2, 2)),
                repetition_penalty=data.draw(st.floats(0.5, 2)),
                logit_bias=data.draw(st.dictionaries(ids, st.floats(-100, 100), max_size=5)),
                # Ids that end no row, so that min_tokens leaves something.
                allowed_token_ids=allowed and [*allowed, 149],
                min_tokens=data.draw(st.integers(0, 8)),
                stop_token_ids=data.draw(st.lists(st.integers(0, 148), max_size=3)),
                ignore_eos=data.draw(st.booleans()),
            )
        )
        prompts.append(data.draw(sequences))
        outputs.append(data.draw(sequences))
    logits = normal(data.draw(SEEDS), 2, V)
    plan = SamplingPlan(random=True, bias=True, min_tokens=True, penalties=True, min_p=True, ranked=V, ends=8)
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
@pytest.mark.parametrize("kind", FILTERS, ids=str)
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
    assert [stage for stage in stages if stage in drawn] == ["chlo.top_k", "cumsum", "threefry", "stablehlo.log"]


@pytest.mark.parametrize("params", [greedy(), SamplingParams()], ids=["greedy", "random"])
def test_no_state_of_the_size_of_the_vocabulary_without_need(params):
    sizes = [leaf.size for leaf in jax.tree.leaves(state_of([params], vocab_size=10_000))]
    assert sum(sizes) < 100


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


# The distribution of draws.


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
    prompt=sequences.map(tuple),
    outputs=sequences.map(tuple),
    logits=SEEDS,
    ties=st.booleans(),
)


EVERYTHING = SamplingPlan(random=True, bias=True, min_tokens=True, penalties=True, min_p=True, ranked=V)


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


def test_a_row_without_top_k_keeps_more_than_what_is_ranked():
    scaled = normal(0, 2, V, scale=0.1)
    state = state_of([SamplingParams(), SamplingParams(top_k=5)])
    assert state.plan.ranked < V
    kept = keep(scaled, state)
    assert (kept[0] == scaled[0]).all() and jnp.isfinite(kept[1]).sum() == 5


@pytest.mark.slow
def test_ranking_few_or_all_of_a_large_vocabulary():
    size = 5_000
    params = SamplingParams(top_k=50, top_p=0.9)
    few = state_of([params] * 2, vocab_size=size, seed=3)
    every = state_of([params] * 2, vocab_size=size, seed=3, plan=dataclasses.replace(few.plan, ranked=size))
    assert (few.plan.ranked, every.plan.ranked) == (64, size)
    logits = tied(normal(0, 2, size) * 8) / 8
    assert (keep(logits, few) == keep(logits, every)).all()
    assert (draw(logits, few, steps(2))[0] == draw(logits, every, steps(2))[0]).all()


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


def test_rows_are_made_on_the_host_and_become_the_state_under_jit():
    """Bit for bit: no number passes through arithmetic on its way."""
    params = [greedy(), SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, seed=2**64 - 2, min_tokens=3)]
    options = dict(samples=[0, 4], default_seeds=[2**40 + 1, 0])
    rows = make_rows(params, [(1, 2), (3,)], V, EOS, **options)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(rows))
    state = jax.jit(SamplingRows.state)(rows)
    numbers = dict(
        temperature=[0.0, 0.7], top_p=[1.0, 0.9], min_p=[-np.inf, np.log(0.1)], top_k=[V, 5], min_tokens=[0, 3],
        repetition_penalty=[1.0, 1.0],
    )  # fmt: skip
    for name, expected in numbers.items():
        found = getattr(state, name)
        np.testing.assert_array_equal(found, np.array(expected, found.dtype))
    for row, (seed, sample_of) in enumerate([(2**40 + 1, 0), (2**64 - 2, 4)]):
        own = jax.random.wrap_key_data(np.array([seed >> 32, seed % 2**32], np.uint32), impl="threefry2x32")
        np.testing.assert_array_equal(state.key[row], jax.random.key_data(jax.random.fold_in(own, sample_of)))
    jax.tree.map(np.testing.assert_array_equal, state, make_state(params, [(1, 2), (3,)], V, EOS, **options))


def test_set_rows():
    params = [greedy(), SamplingParams(top_k=5, frequency_penalty=1.0), SamplingParams(min_tokens=2)]
    whole = state_of(params, prompts=[[1], [2], [3]])
    state = state_of([greedy()] * 3, plan=whole.plan, seed=50)
    parts = state_of(params[1:], prompts=[[2], [3]], plan=whole.plan, seed=1)
    state = set_rows(state, jnp.array([1, 2]), parts)
    for name in ("key", "top_k", "frequency_penalty", "min_tokens", "ends"):
        assert (getattr(state, name)[1:] == getattr(whole, name)[1:]).all(), name
    assert state.prompted.sum(axis=-1).tolist() == [0, 1, 1] and state.prompted[1, 2]
    assert state.temperature.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match=r"^new: expected the plan of state"):
        set_rows(state, jnp.array([0]), state_of([greedy()]))


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


def test_min_tokens_with_nothing_else_allowed():
    with pytest.raises(ValueError, match=r"^allowed_token_ids: expected an id that does not end the sequence"):
        state_of([SamplingParams(min_tokens=1, allowed_token_ids=[7, 30], stop_token_ids=[30])])
    state_of([SamplingParams(allowed_token_ids=[7, 30], stop_token_ids=[30])])


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


# Plans.


def test_plans():
    plan = lambda *params, size=10_000: make_plan(params, size, EOS)
    assert plan(greedy(top_k=3, min_p=0.5, top_p=0.5)) == SamplingPlan()
    assert plan(SamplingParams()) == SamplingPlan(random=True)
    assert plan(SamplingParams(top_k=3)).ranked == 64
    assert plan(SamplingParams(top_k=3), SamplingParams(top_k=65)).ranked == 128
    assert plan(SamplingParams(top_k=1024)).ranked == 1024
    assert plan(SamplingParams(top_k=1025)).ranked == 10_000
    assert plan(SamplingParams(top_k=3), SamplingParams(top_p=0.9)).ranked == 10_000
    assert plan(SamplingParams(top_k=10_000)).ranked == 0
    assert plan(SamplingParams(top_k=3), size=20).ranked == 20
    assert plan(greedy(stop_token_ids=[1, 2, 7])).ends == 4
    assert plan(greedy(stop_token_ids=[1, 2, 3])).ends == 8
    both = plan(SamplingParams(top_k=3), greedy(min_tokens=1))
    assert both == plan(SamplingParams(top_k=3)) | plan(greedy(min_tokens=1))
    assert both.covers(SamplingPlan()) and not SamplingPlan().covers(both)
    assert hash(both) == hash(dataclasses.replace(both))


BAD_STATES = [
    ("params", dict(params=[], prompts=[])),
    ("prompts", dict(prompts=[])),
    ("outputs", dict(outputs=[[], []])),
    ("samples", dict(samples=[0, 1])),
    ("default_seeds", dict(default_seeds=[])),
    ("default_seeds", dict(default_seeds=[-1])),
    (r"prompts\[0\]", dict(prompts=[[V]])),
    (r"prompts\[0\]", dict(prompts=[[-1]])),
    (r"outputs\[0\]", dict(outputs=[[V]])),
    ("eos_ids", dict(eos_ids=[V])),
    ("stop_token_ids", dict(params=[greedy(stop_token_ids=[V])])),
    ("plan", dict(params=[SamplingParams()], plan=SamplingPlan())),
]


@pytest.mark.parametrize("name, change", BAD_STATES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(BAD_STATES)])
def test_bad_states(name, change):
    with pytest.raises(ValueError, match=f"^{name}: expected") as error:
        make_state(**(dict(params=[greedy()], prompts=[()], vocab_size=V, eos_ids=EOS) | change))
    assert "\n" not in str(error.value)


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
