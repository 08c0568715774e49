"""Rows, logits and the jitted stages that the tests of sampling share."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from tokenspeed.sampling import sample as sampling
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.sampling.state import make_state

SEEDS = st.integers(0, 2**16)
V = 150
EOS = (7, 11)
IDS = st.integers(0, V - 1)
SEQUENCES = st.lists(IDS, max_size=12)
draw = jax.jit(sampling.sample, static_argnames="logprobs")
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


def oracle_keep(scaled, params):
    """In float64, sorted: (bool [V], how far the nearest decision was from going the other way)."""
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
