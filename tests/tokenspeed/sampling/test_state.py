"""The rows' parameters as arrays, the plans that they need, and states that are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tokenspeed.sampling.shared import EOS, V, greedy, state_of
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.sampling.state import SamplingPlan, SamplingRows, make_plan, make_rows, make_state, set_rows


@pytest.mark.parametrize("params", [greedy(), SamplingParams()], ids=["greedy", "random"])
def test_no_state_of_the_size_of_the_vocabulary_without_need(params):
    sizes = [leaf.size for leaf in jax.tree.leaves(state_of([params], vocab_size=10_000))]
    assert sum(sizes) < 100


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


def test_min_tokens_with_nothing_else_allowed():
    with pytest.raises(ValueError, match=r"^allowed_token_ids: expected an id that does not end the sequence"):
        state_of([SamplingParams(min_tokens=1, allowed_token_ids=[7, 30], stop_token_ids=[30])])
    state_of([SamplingParams(allowed_token_ids=[7, 30], stop_token_ids=[30])])


def test_plans():
    plan = lambda *params, size=10_000: make_plan(params, size, EOS)
    assert plan(greedy(top_k=3, min_p=0.5, top_p=0.5)) == SamplingPlan()
    assert plan(SamplingParams()) == SamplingPlan(random=True)
    assert plan(SamplingParams(top_k=3)) == plan(SamplingParams(top_k=9_999)) == SamplingPlan(random=True, top_k=True)
    assert plan(SamplingParams(top_p=0.9)) == plan(SamplingParams(top_p=0.1)) == SamplingPlan(random=True, top_p=True)
    assert plan(SamplingParams(top_k=10_000)) == SamplingPlan(random=True)
    assert plan(SamplingParams(top_k=20), size=20) == SamplingPlan(random=True)
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
