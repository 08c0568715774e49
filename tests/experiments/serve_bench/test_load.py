"""Arrivals, prompts and what requests came to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.serve_bench import arrivals
from experiments.serve_bench.client import Request
from experiments.serve_bench.figures import figures
from experiments.serve_bench.load import planned, with_long
from experiments.serve_bench.mixes import Prompt, Sizes, text

SIZES = Sizes(chat_words=20, chat_tokens=10, long_words=300, long_tokens=4)
CHAT, LONG = (Prompt(kind=kind, text="", tokens=3) for kind in ("chat", "long"))


@pytest.mark.parametrize("kind, burst", [("poisson", 1), ("bursty", 8)])
def test_arrivals_have_their_rate(kind, burst):
    found = arrivals.times(kind, 20.0, 1000.0, burst, np.random.default_rng(0))
    assert found == sorted(found) and found[0] >= 0 and found[-1] < 1000
    # Of n independent bursts the count is off by their root; four of these are never met.
    assert abs(len(found) - 20000) < 4 * burst * np.sqrt(20000 / burst)
    assert all(len(set(found[i : i + burst])) == 1 for i in range(0, len(found), burst))


def test_poisson_is_without_memory():
    gaps = np.diff(arrivals.times("poisson", 10.0, 2000.0, 1, np.random.default_rng(1)))
    assert gaps.mean() == pytest.approx(0.1, rel=0.05) and gaps.std() == pytest.approx(0.1, rel=0.05)


@given(words=st.integers(1, 50), seed=st.integers(0, 9))
def test_texts_have_their_words(words, seed):
    assert len(text(words, np.random.default_rng(seed)).split()) == words


def test_a_plan_has_long_prompts_by_their_own_clock():
    plan = planned("poisson", "both", 5.0, 40.0, 1, 8.0, SIZES, 3)
    assert [when for when, _ in plan] == sorted(when for when, _ in plan)
    assert [when for when, prompt in plan if prompt.kind == "long"] == [4, 12, 20, 28, 36]
    chats = [prompt for _, prompt in plan if prompt.kind == "chat"]
    assert len({prompt.text for prompt in chats}) == len(chats) > 100
    assert (
        planned("poisson", "both", 5.0, 40.0, 1, 8.0, SIZES, 3)
        == plan
        != planned("poisson", "both", 5.0, 40.0, 1, 8.0, SIZES, 4)
    )
    assert {prompt.kind for _, prompt in planned("bursty", "long", 5.0, 40.0, 4, 8.0, SIZES, 3)} == {"long"}


def test_every_so_many_are_long_in_a_closed_loop():
    kinds = [prompt.kind for _, prompt in zip(range(48), with_long(iter([CHAT] * 48), SIZES, 0))]
    assert [i for i, kind in enumerate(kinds) if kind == "long"] == [8, 24, 40]


def request(due, *arrivals, prompt=CHAT, status=200, error="", sent=None):
    ended = arrivals[-1] if arrivals else due
    return Request(
        prompt=prompt, due=due, sent=due if sent is None else sent, arrivals=list(arrivals), ended=ended, status=status,
        error=error, prompt_tokens=7,
    )  # fmt: skip


def test_figures():
    requests = [
        request(9.0, 9.5, 9.6),  # of the warm-up
        request(10.0, 10.1, 10.2, 10.3),
        request(11.0, 11.3, 11.7, sent=11.2),
        request(12.0, status=429, error="status 429"),
        request(13.0, status=0, error="ConnectError"),
        request(14.0, 20.0, prompt=LONG),
    ]
    found = figures(requests, 10.0, slo_ttft_ms=200, slo_itl_ms=150)
    assert (found["requests"], found["errors"], found["rejected"]) == (4, 1, 1)
    assert found["seconds"] == 10 and found["requests_per_s"] == 0.2 and found["goodput_per_s"] == 0.1
    assert found["output_tokens_per_s"] == 0.6 and found["output_tokens_mean"] == 2.5
    assert (found["ttft_ms_p50"], found["whole_ms_p50"], found["long_ttft_ms_p50"]) == (200, 500, 6000)
    assert found["itl_ms_p50"] == 100 and found["late_ms_p99"] == pytest.approx(200, rel=0.05)
    assert found["prompt_tokens_mean"] == 7


def test_figures_of_nothing():
    found = figures([request(12.0, status=0, error="ConnectError")], 10.0, 1, 1)
    assert found["errors"] == found["requests"] == 1 and found["ttft_ms_p50"] is None and found["goodput_per_s"] == 0
