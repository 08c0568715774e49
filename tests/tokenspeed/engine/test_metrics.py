"""What an engine counts of its steps."""

import time

import pytest

from tests.tokenspeed.engine.test_engine import PROMPTS, engine_of, row_of, run
from tokenspeed.engine.metrics import HOST_BOUNDS, Metrics
from tokenspeed.sampling.params import SamplingParams


def test_the_host_is_busy_where_it_does_not_wait():
    assert Metrics(step_s=3.0, wait_s=1.25).host_s == 1.75


def test_the_hosts_times_are_counted_by_their_bounds():
    metrics = Metrics()
    for seconds, waited in ((HOST_BOUNDS[0], 0.0), (1.0, 1.0 - 0.9 * HOST_BOUNDS[1]), (7.0, 0.5)):
        metrics.stepped(seconds, waited)
    assert (metrics.host_counts[0], metrics.host_counts[1], metrics.host_counts[-1]) == (1, 1, 1)
    assert metrics.step_s == pytest.approx(HOST_BOUNDS[0] + 8.0) and sum(metrics.host_counts) == 3


@pytest.mark.slow
def test_counts_of_an_engine():
    engine = engine_of()
    rows = [row_of(i, PROMPTS[i], SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)) for i in range(3)]
    begun = time.perf_counter()
    for i, row in enumerate(rows):
        engine.add(i, row)
    run(engine)
    taken, metrics = time.perf_counter() - begun, engine.metrics
    assert metrics.output_tokens == sum(len(row.ids) for row in rows) == 27
    assert metrics.prefill_tokens == sum(len(row.prompt) for row in rows)
    assert metrics.steps == engine.scheduler.steps >= 9
    assert 0 < metrics.decode_steps < metrics.steps and sum(metrics.host_counts) >= metrics.steps
    assert 0 < metrics.decode_s < metrics.step_s + 1.0
    assert 0 < metrics.wait_s < metrics.step_s and metrics.host_s > 0
    assert metrics.step_s <= taken - engine.runner.compile_s + 1.0, "compiling, most of the time here, is no part of it"
