"""What an engine counts of its steps."""

import time

import pytest

from tests.tokenspeed.engine.test_engine import PROMPTS, engine_of, row_of, run
from tokenspeed.engine.metrics import Metrics
from tokenspeed.sampling.params import SamplingParams


def test_the_host_is_busy_where_it_does_not_wait():
    assert Metrics(step_s=3.0, wait_s=1.25).host_s == 1.75


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
    assert 0 < metrics.wait_s < metrics.step_s and metrics.host_s > 0
    assert metrics.step_s <= taken - engine.runner.compile_s + 1.0, "compiling, most of the time here, is no part of it"
