"""The cases, on an engine without a model: what they ask for, what they make of it, and what is void."""

import jax
import numpy as np
import pytest

from experiments.throughput import load
from experiments.throughput.case import measure
from experiments.throughput.client import Request
from experiments.throughput.load import Load
from experiments.throughput.long_prompt import LongPrompt
from experiments.throughput.shared_prefix import SharedPrefix
from tests.experiments.throughput.served import PAGE, Served

LOAD = Load(concurrency=3, requests=7, input_tokens=20, output_tokens=6, seed=0)
LONG = LongPrompt(long_tokens=1000, background=2, input_tokens=20, short_tokens=10, repeats=2, seed=0)
SHARED = SharedPrefix(prefix_tokens=100, suffix_tokens=10, repeats=3, seed=0)


# --- a load


def test_figures_of_requests():
    first = Request(prompt=[1], max_tokens=3, called=10.0, tokens=[1, 2, 3])
    first.arrivals = [(10.1, 1), (10.2, 1), (10.4, 1)]
    second = Request(prompt=[2], max_tokens=3, called=11.0, tokens=[4, 5, 6])
    second.arrivals = [(11.3, 1), (12.0, 2)]
    taken = dict(steps=4, host_s=0.008, wait_s=0.02, preemptions=1, hit_tokens=16)
    found = load.figures([first, second], taken)
    assert (found["seconds"], found["output_tokens_per_s"], found["requests_per_s"]) == (2.0, 3.0, 1.0)
    assert found["ttft_ms_p50"] == 200 and found["ttft_ms_p99"] == 298 and found["whole_ms_p50"] == 700
    assert found["itl_ms_p50"] == 275 and found["itl_ms_p99"] == 350, "of 100, 200, 350, 350"
    assert (found["steps"], found["host_ms_per_step"], found["wait_ms_per_step"]) == (4, 2.0, 5.0)
    assert (found["preemptions"], found["prefix_hit_tokens"], found["tokens_checked"]) == (1, 16, 6)


def test_a_load_is_warmed_up_and_one_of_its_requests_is_run_again_alone():
    engine = Served()
    found = measure(engine, 50, LOAD)
    assert found.status == "ok" and engine.most == 3
    warm, loads, again = engine.asked[:3], engine.asked[3:-1], engine.asked[-1]
    assert len(loads) == 7 and {most for _, most in (*warm, *loads)} == {6}
    assert again in loads and len({tuple(prompt) for prompt, _ in engine.asked}) == 10, "all others differ"
    assert all(len(prompt) == 20 for prompt, _ in engine.asked)
    assert found.fields["tokens_checked"] == 42 and found.fields["tokens_alike"] == 6
    assert found.fields["steps"] == 42 and found.fields["host_ms_per_step"] == pytest.approx(2.0)
    assert found.fields["pool_occupancy"] == 3 / 8 and found.fields["compiled_after_ready"] == 0
    others = Served()
    measure(others, 50, Load(concurrency=2, requests=7, input_tokens=20, output_tokens=6, seed=0))
    assert not {tuple(prompt) for prompt, _ in others.asked} & {tuple(prompt) for prompt, _ in engine.asked}


def test_tokens_that_are_others_when_the_request_is_alone_are_told():
    class Tied(Served):
        def drawn(self, prompt, place):
            (token,) = super().drawn(prompt, place)
            return [token + (place == 4 and len(self.asked) < 11)]

    found = measure(Tied(), 50, LOAD)
    assert found.status == "ok" and found.fields["tokens_alike"] == 4


def test_another_number_of_tokens_is_void():
    class Short(Served):
        def drawn(self, prompt, place):
            return [] if place == 3 else super().drawn(prompt, place)

    found = measure(Short(), 50, LOAD)
    assert found.status == "void: a request that drew another number of tokens than was asked for"
    assert found.fields["tokens_checked"] == 35


@pytest.mark.parametrize("case", [LOAD, LONG, SHARED], ids=lambda case: case.kind)
def test_what_is_compiled_is_void(case):
    class Compiling(Served):
        def drawn(self, prompt, place):
            if place == 0:
                jax.jit(lambda x: x * 3.5)(np.float32(1))  # each time another function
            return super().drawn(prompt, place)

    found = measure(Compiling(), 50, case)
    assert found.status == "void: something was compiled after the engine was ready"
    assert found.fields["compiled_after_ready"] > 0


@pytest.mark.parametrize("case", [LOAD, LONG, SHARED], ids=lambda case: case.kind)
def test_what_fails_has_no_figures(case):
    class Failing(Served):
        def drawn(self, prompt, place):
            if len(self.asked) > 3:
                raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore lines")
            return super().drawn(prompt, place)

    engine = Failing()
    found = measure(engine, 50, case)
    assert found.status == "running failed: RuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert not found.fields and engine.under_way == 0


# --- a long prompt


def test_a_long_prompt_beside_others():
    seen = {}

    class Noted(Served):
        async def stream(self, id, prompt, params=None, *, priority=0):
            if len(prompt) == 10:
                seen["half"] = self.engine.metrics.prefill_tokens - seen["before"]
            if len(prompt) == 1000:
                seen["before"] = self.engine.metrics.prefill_tokens
            async for delta in super().stream(id, prompt, params):
                yield delta

    engine = Noted()
    found = measure(engine, 50, LONG)
    assert found.status == "ok", "and nobody has ended"
    assert engine.most == 4 and engine.under_way == 0, "the others are given up"
    assert 500 <= seen["half"] < 1000
    lengths = [len(prompt) for prompt, _ in engine.asked]
    assert lengths == [20, 20, 1000, 10] * 3 and len({tuple(prompt) for prompt, _ in engine.asked}) == 12
    fields = found.fields
    assert 0 < fields["itl_before_ms_p50"] <= fields["itl_during_ms_p99"] < fields["long_ttft_ms"]
    assert fields["long_ttft_ms"] >= 2 * 1000 // 64, "ms, 2 a chunk"
    assert 0 < fields["short_ttft_ms"] < fields["long_ttft_ms"] and fields["preemptions"] == 0


def test_others_that_end_too_early_are_void():
    found = measure(Served(room=40), 50, LONG)
    assert found.status == "void: one of the others ended before the long prompt was done"


def test_a_long_prompt_that_is_done_before_the_short_one_comes_is_void():
    class Unseen(Served):
        """Whose prefill nobody sees."""

        async def stream(self, id, prompt, params=None, *, priority=0):
            async for delta in super().stream(id, prompt, params):
                self.engine.metrics.prefill_tokens = -(10**6)
                yield delta

    found = measure(Unseen(), 50, LONG)
    assert found.status == "void: the long prompt was done before the short one came"


# --- a shared prefix


def test_a_shared_prefix():
    engine = Served()
    found = measure(engine, 50, SHARED)
    assert found.status == "ok" and found.fields["prefix_hit_tokens"] == 3 * (100 // PAGE * PAGE)
    assert found.fields["second_ttft_ms"] < found.fields["first_ttft_ms"]
    pairs = list(zip(engine.asked[::2], engine.asked[1::2]))
    assert len(pairs) == 4 and len({tuple(first[:100]) for (first, _), _ in pairs}) == 4
    for (first, most), (second, _) in pairs:
        assert most == 1 and first[:100] == second[:100] and first[100:] != second[100:] and len(second) == 110


def test_a_prefix_that_is_not_found_is_void():
    found = measure(Served(reuse=False), 50, SHARED)
    assert found.status == "void: 0 tokens were found of 288 that are whole pages of prefixes"
