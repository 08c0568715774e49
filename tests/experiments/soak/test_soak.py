"""The soak, short: its requests are those of a seed, and it sees what is wrong."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from experiments.bench import log as logs
from experiments.soak import __main__ as soak
from experiments.soak import run
from experiments.soak.traffic import requests
from tokenspeed.sampling.params import SamplingParams

pytestmark = pytest.mark.usefixtures("programs_run_often")

ENCODE = lambda text: [3 + len(word) for word in text.split()]


def test_the_same_seed_gives_the_same_requests_that_overlap_and_differ():
    first, second = (list(requests(ENCODE, count=100, max_context=64, seed=7)) for _ in range(2))
    assert first == second != list(requests(ENCODE, count=100, max_context=64, seed=8))
    assert 100 <= len(first) < 110
    for one in first:
        assert one.prompt and len(one.prompt) + one.params.max_tokens <= 64
    assert len({one.prompt[:5] for one in first}) < 80, "some begin alike"
    assert any(one.cancel_after is not None for one in first) and any(one.sample for one in first)
    assert {one.params.greedy for one in first} == {True, False} and len({one.priority for one in first}) > 1


def test_how_much_logits_have_to_change_for_a_token_to_be_kept_or_not():
    scaled = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    margin = lambda token, **how: run.margin_to_be_kept(scaled, SamplingParams(**how), token)
    assert margin(3) == margin(0, top_p=0.1) == margin(0, min_p=0.9) == margin(3, top_k=4) == np.inf, "always kept"
    assert margin(2, top_k=2) == pytest.approx(-np.log(2)), "the second is so much above it"
    assert margin(1, top_k=2) == pytest.approx(np.log(2)), "and it so much above the third"
    assert margin(2, top_p=0.79) == pytest.approx(-np.log((0.8 / 0.2) / (0.79 / 0.21))), "those above weigh too much"
    assert margin(2, top_p=0.81) == pytest.approx(np.log((0.81 / 0.19) / (0.8 / 0.2)))
    assert margin(2, min_p=0.4) == pytest.approx(-np.log(0.2 / 0.15))
    assert margin(2, min_p=0.2) == pytest.approx(np.log(0.15 / 0.1))
    assert margin(3, top_k=2, top_p=0.9) == pytest.approx(-np.log(6)), "the one that wants the most"
    # Of the two that are kept the first has 0.625, so that the second is not among the most likely 0.6.
    assert margin(1, top_k=2, top_p=0.6) == pytest.approx(np.log(0.6 / 0.4) - np.log(0.5 / 0.3))


@pytest.mark.parametrize("seed", range(20))
def test_a_token_with_a_margin_is_one_that_is_kept(seed):
    draw = np.random.default_rng(seed)
    scaled = draw.normal(scale=2, size=12).astype(np.float32)
    k, p = int(draw.integers(1, 13)), float(draw.uniform(0.2, 0.99))
    kept = pk.top_k_top_p(jnp.asarray(scaled)[None], jnp.array([k]), jnp.array([p], jnp.float32), implementation="xla")
    margins = [run.margin_to_be_kept(scaled, SamplingParams(top_k=k, top_p=p), token) for token in range(12)]
    assert [margin > 0 for margin in margins] == np.asarray(kept)[0].tolist()


@pytest.mark.slow
def test_a_short_soak_and_one_in_which_a_row_is_wrong(tmp_path, monkeypatch):
    path = str(tmp_path / "soak.jsonl")
    how = ["--requests=8", "--short=20", "--batch=2", "--batch_invariant", f"--results={path}"]
    assert soak.main(how) == 0
    (record,) = logs.read(path)
    assert record["status"] == "ok" and record["flat"]
    assert record["same_bits"] + record["cancelled"] == record["requests"] >= 8 and record["tokens_checked"] > 0
    row_of, calls = run.row_of, []

    def other_seed(llm, request):
        calls.append(request)
        wrong = dataclasses.replace(request.params, seed=1, temperature=1.0, n=1)
        return row_of(llm, dataclasses.replace(request, params=wrong) if len(calls) % 3 == 0 else request)

    monkeypatch.setattr(run, "row_of", other_seed)
    assert soak.main([*how, "--short=0", "--seed=1"]) == 1
    assert "not the bits of its lone run" in logs.read(path)[-1]["status"]
