"""Requests to an engine, and the times of their tokens."""

import asyncio

import pytest

from experiments.throughput.client import Request, closed_loop, percentile, prompts
from tests.experiments.throughput.served import Served


def test_times_of_a_request():
    one = Request(prompt=[1], max_tokens=6, called=10.0, arrivals=[(10.5, 1), (10.75, 1), (11.75, 4), (12.0, 1)])
    assert one.ttft_ms == 500 and one.whole_ms == 2000
    assert (one.when(1), one.when(2), one.when(3), one.when(6)) == (10.5, 10.75, 11.75, 11.75)
    assert one.gaps_ms() == [250, 250, 250, 250, 250, 250], "a second for four tokens"
    one.arrivals[2] = (11.75, 2)
    assert one.gaps_ms() == [250, 500, 500, 250]
    assert one.gaps_ms(begin=11.0) == [500, 500, 250] == one.gaps_ms(begin=10.75)
    assert one.gaps_ms(begin=10.6, end=10.7) == [250], "the wait around both"
    assert one.gaps_ms(end=11.75) == [250, 500, 500] and one.gaps_ms(begin=12.0) == []


def test_a_request_reads_its_tokens_to_the_end():
    engine, one, seen = Served(each=3), Request(prompt=[5, 6], max_tokens=7), []
    asyncio.run(one.run(engine, lambda: seen.append(len(one.tokens))))
    assert one.tokens == [11 + i for i in range(7)] and [count for _, count in one.arrivals] == [3, 3, 1]
    assert seen == [3, 6, 7] and one.called < one.first < one.last


@pytest.mark.parametrize("concurrency, most", [(1, 1), (3, 3), (9, 7)])
def test_so_many_at_a_time_and_each_once(concurrency, most):
    engine = Served()
    requests = [Request(prompt=[i], max_tokens=4 + i) for i in range(7)]
    asyncio.run(closed_loop(engine, requests, concurrency))
    assert engine.most == most and sorted(engine.asked) == [([i], 4 + i) for i in range(7)]
    assert [len(one.tokens) for one in requests] == [4 + i for i in range(7)]


def test_prompts_are_the_same_again_and_others_by_any_number():
    assert prompts(50, 20, 2, 1, 2, 3) == prompts(50, 20, 2, 1, 2, 3)
    found = [tuple(one) for seed in ((1, 2, 3), (0, 2, 3), (1, 2, 4)) for one in prompts(50, 20, 2, *seed)]
    assert len(set(found)) == 6 and all(type(i) is int and 0 <= i < 50 for one in found for i in one)


def test_percentiles():
    assert percentile([1.0, 2.0, 4.0], 50) == 2.0 and percentile([], 99) is None
    assert percentile([float(i) for i in range(101)], 99) == 99.0
