"""Arrivals, prompts and what requests came to."""

import asyncio
import dataclasses
import time

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.bench import options as command_line
from experiments.serve_bench import arrivals, lag
from experiments.serve_bench.client import CONTINUOUS, EVENTS, Request
from experiments.serve_bench.figures import Bounds, figures
from experiments.serve_bench.load import open_loop, planned, with_long
from experiments.serve_bench.mixes import Prompt, Sizes
from experiments.serve_bench.options import Options
from experiments.serve_bench.texts import random_words

SIZES = Sizes(text=random_words, spread=0.6, chat_input=20, chat_output=10, long_input=300, long_output=4)
CHAT, LONG = (Prompt(kind=kind, text="", input=5, output=3) for kind in ("chat", "long"))
BOUNDS = Bounds(ttft_ms=200, tpot_ms=150, late_ms=1e6)


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
    assert len(random_words(words, np.random.default_rng(seed)).split()) == words


def plan(mix, seed=3, salt=0, kind="poisson", burst=1):
    return planned(kind, mix, 5.0, 40.0, burst, 8.0, SIZES, seed, salt)


def test_a_plan_has_long_prompts_by_their_own_clock():
    found = plan("both")
    assert [when for when, _ in found] == sorted(when for when, _ in found)
    assert [when for when, prompt in found if prompt.kind == "long"] == [4, 12, 20, 28, 36]
    chats = [prompt for _, prompt in found if prompt.kind == "chat"]
    assert len({prompt.text for prompt in chats}) == len(chats) > 100
    assert plan("both") == found != plan("both", seed=4)
    assert {prompt.kind for _, prompt in plan("long", kind="bursty", burst=4)} == {"long"}


def test_with_and_without_long_prompts_the_chats_are_as_many_and_as_long_and_none_is_known():
    def shapes(found):
        return [(when, one.input, one.output) for when, one in found if one.kind == "chat"]

    alone, beside = plan("chat", salt=1), plan("both", salt=2)
    assert shapes(alone) == shapes(beside) != shapes(plan("chat", seed=4))
    assert not {one.text for _, one in alone} & {one.text for _, one in beside}


def test_requests_are_sent_when_due_and_a_stall_counts_for_all_that_wait_behind_it():
    served = 0

    async def handle(request):
        nonlocal served
        served += 1
        if served == 2:
            time.sleep(0.3)  # the client itself can do nothing either
        await asyncio.sleep(0.4)
        return httpx2.Response(200, content=b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n')

    async def run():
        transport = httpx2.MockTransport(handle)
        async with httpx2.AsyncClient(base_url="http://x", transport=transport) as client:
            return await open_loop(client, "m", [(when, CHAT) for when in (0.0, 0.1, 0.2)], {})

    first, second, third = asyncio.run(run())
    assert second.sent < first.ended, "none waits for another"
    assert [one.due - first.due for one in (second, third)] == pytest.approx([0.1, 0.2])
    assert third.sent - third.due > 0.15 and third.ttft_ms > 1e3 * (third.sent - third.due) + 350


def test_without_spread_every_chat_is_the_median():
    sizes = dataclasses.replace(SIZES, spread=0.0, chat_input=1024, chat_output=128)
    found = sizes.chat(np.random.default_rng(0), np.random.default_rng(0))
    assert (found.input, found.output, len(found.text.split())) == (1024, 128, 1024)


def test_every_so_many_are_long_in_a_closed_loop():
    kinds = [prompt.kind for _, prompt in zip(range(48), with_long(iter([CHAT] * 48), SIZES, 0, 0))]
    assert [i for i, kind in enumerate(kinds) if kind == "long"] == [8, 24, 40]


def test_chats_alone_stand_before_those_of_both():
    options = dataclasses.replace(
        command_line.parse([], Options, "serve.py"), mixes=("both",), rates=(1.0, 2.0), repeats=2
    )  # fmt: skip
    found = [(one.repeat, one.rate, one.mix, one.turned) for one in options.cases]
    assert found[:4] == [
        (0, 1.0, "chat", False), (0, 1.0, "both", True), (0, 2.0, "chat", True), (0, 2.0, "both", False)
    ]  # fmt: skip
    assert [(mix, turned) for _, _, mix, turned in found[4:6]] == [("chat", True), ("both", False)]


def request(due, *arrivals, prompt=CHAT, status=200, error="", sent=None, tokens=1, extra=2):
    ended = arrivals[-1] if arrivals else due
    return Request(
        prompt=prompt, due=due, sent=due if sent is None else sent, arrivals=[(when, tokens) for when in arrivals],
        ended=ended, status=status, error=error, prompt_tokens=prompt.input + extra, counted_by=CONTINUOUS,
    )  # fmt: skip


def of(requests, begun=10.0, bounds=BOUNDS, lags=(), in_tokens=False, least_s=0.0):
    return figures(requests, begun, least_s, bounds, lags, in_tokens)


def test_figures():
    requests = [
        request(9.0, 9.5, 9.6),  # of the warm-up
        request(10.0, 10.1, 10.2, 10.3),
        request(11.0, 11.3, 11.7, sent=11.2),
        request(12.0, status=429, error="status 429"),
        request(13.0, status=0, error="ConnectError"),
        request(14.0, 20.0, prompt=LONG),
    ]
    found = of(requests)
    assert (found["requests"], found["errors"], found["rejected"], found["status"]) == (4, 1, 1, "ok")
    assert found["errors_by_kind"] == {"ConnectError": 1, "status 429": 1}
    assert found["seconds"] == 10 and found["requests_per_s"] == 0.2 and found["goodput_per_s"] == 0.1
    assert found["output_tokens_per_s"] == 0.6 and found["output_tokens_mean"] == 2.5
    assert (found["ttft_ms_p50"], found["whole_ms_p50"], found["long_ttft_ms_p50"]) == (200, 500, 6000)
    assert found["itl_ms_p50"] == 100 and found["late_ms_p99"] == pytest.approx(200, rel=0.05)
    assert found["prompt_tokens_mean"] == 7 and found["template_tokens"] is None
    assert found["tokens_per_event_mean"] == found["tokens_at_once_mean"] == 1
    assert of(requests, least_s=20.0)["requests_per_s"] == 0.1, "a quiet end is time too"


def test_figures_of_nothing():
    found = of([request(12.0, status=0, error="ConnectError")])
    assert found["errors"] == found["requests"] == 1 and found["ttft_ms_p50"] is None
    assert found["goodput_per_s"] == 0 and found["status"] == "void: no request was answered"


def test_tokens_that_come_together_are_told_and_do_not_hide_the_time_of_one():
    together = [10.1, 10.10001, 10.10002, 10.10003]
    found = of([request(10.0, *together, *(when + 0.4 for when in together))])
    assert found["itl_ms_p50"] < 0.1 and found["tpot_ms_p50"] == pytest.approx(100, rel=0.01)
    assert found["request_tokens_per_s_p50"] == pytest.approx(10, rel=0.01)
    assert (found["tokens_per_event_mean"], found["tokens_at_once_mean"]) == (1, 4)
    found = of([request(10.0, 10.1, 10.5, tokens=4)])
    assert found["itl_ms_p50"] == pytest.approx(400) and found["tpot_ms_p50"] == pytest.approx(100)
    assert (found["tokens_per_event_mean"], found["tokens_at_once_mean"]) == (4, 4)


@pytest.mark.parametrize("sent, lag_ms, who", [(10.5, 1.0, "the client"), (10.0, 500.0, "the client's event loop")])
def test_a_late_client_does_not_count(sent, lag_ms, who):
    bounds = dataclasses.replace(BOUNDS, late_ms=100.0)
    lags = [(9.0, 1e5), (11.0, lag_ms)]
    found = of([request(10.0, 10.6, 10.7, sent=sent)], bounds=bounds, lags=lags)
    assert found["status"] == f"void: {who} was 500.0 ms late (p99), of the 100 that it may"
    assert of([request(10.0, 10.6, 10.7)], bounds=bounds, lags=[(11.0, 1.0)])["status"] == "ok"


def test_a_busy_event_loop_is_noticed():
    async def busy():
        async with lag.watched() as lags:
            await asyncio.sleep(0.02)
            time.sleep(0.1)
            await asyncio.sleep(0.02)
        return lags

    assert max(late for _, late in asyncio.run(busy())) > 80


def test_the_servers_count_of_tokens_is_held_against_ours():
    good = [request(10.0, 10.1), request(11.0, 11.1, prompt=LONG)]
    assert (of(good, in_tokens=True)["template_tokens"], of(good, in_tokens=True)["status"]) == (2, "ok")
    bad = of([*good, request(12.0, 12.1, extra=5)], in_tokens=True)
    assert bad["template_tokens"] is None and "counts 2 to 5 more tokens than a prompt has" in bad["status"]
    fewer = of([request(12.0, 12.1, extra=-1)], in_tokens=True)
    assert "counts -1 more tokens" in fewer["status"]
    unknown = dataclasses.replace(good[0], prompt_tokens=None)
    assert of([unknown], in_tokens=True)["status"] == "ok"


def test_the_poorest_count_of_a_case_is_told():
    one, other = request(10.0, 10.1), request(11.0, 11.1)
    assert of([one, other])["counted_by"] == CONTINUOUS
    assert of([one, dataclasses.replace(other, counted_by=EVENTS)])["counted_by"] == EVENTS
