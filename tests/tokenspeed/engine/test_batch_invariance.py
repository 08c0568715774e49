"""A request's tokens and log-probabilities are the same bits whoever else is there, where that was asked for."""

import functools

import pytest

from tests.tokenspeed.engine.test_engine import PROMPTS, llm
from tokenspeed.engine.build import EngineOptions, offline
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.input_processor import InputProcessor
from tokenspeed.models.kv_dtypes import parse
from tokenspeed.sampling.params import SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("programs_run_often")]
CONTEXT = 448
BEGINNING = list(range(3, 3 + 300))
"""Longer than the chunks that a prefix is found in."""
REQUESTS = (
    (PROMPTS[0], SamplingParams(temperature=0.0, max_tokens=40, logprobs=3, ignore_eos=True)),
    (BEGINNING + [5, 6], SamplingParams(temperature=0.9, max_tokens=30, seed=1, logprobs=0, ignore_eos=True)),
    (BEGINNING + [7], SamplingParams(temperature=0.7, max_tokens=60, seed=2, logprobs=1, frequency_penalty=0.5)),
    (BEGINNING, SamplingParams(temperature=0.0, max_tokens=70, ignore_eos=True)),
    (BEGINNING[:70], SamplingParams(temperature=1.0, max_tokens=20, seed=3, ignore_eos=True)),
)


def engine_of(*, invariant: bool = True, kv_dtype: str = "auto") -> Engine:
    """With a pool of 8 pages, of which the longest request takes 7."""
    config = llm().model.config
    kv_bytes = 8 * 64 * config.kv_bytes_per_token(*parse("kv_dtype", kv_dtype, llm().model.dtype).itemsizes)
    options = EngineOptions(
        max_context=CONTEXT, max_batch=4, kv_bytes=kv_bytes, prefix_caching=True, batch_invariant=invariant,
        implementation="xla", prefill_backend="xla", kv_dtype=kv_dtype,
    )  # fmt: skip
    return offline(llm().model, options)


def run(engine: Engine, requests, behind: int = 3) -> list:
    """The tokens and log-probabilities of requests, each of which comes some steps behind the one before."""
    inputs = InputProcessor(llm().model.config, llm().tokenizer, CONTEXT)
    rows = []
    for i, (prompt, params) in enumerate(requests):
        rows += inputs.rows(i, prompt, params)
        engine.add(i, rows[-1])
        for _ in range(behind):
            engine.step()
    while not engine.is_idle:
        engine.step()
    return [(row.ids, row.logprobs) for row in rows]


@functools.cache
def alone(number: int, kv_dtype: str = "auto"):
    return run(shared(kv_dtype), [REQUESTS[number]])[0]


@functools.cache
def shared(kv_dtype: str = "auto") -> Engine:
    """One for all, whose pool holds what was known before."""
    return engine_of(kv_dtype=kv_dtype)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8/fp8"])
def test_alone_together_found_and_preempted_are_the_same_bits(kv_dtype):
    engine, numbers = engine_of(kv_dtype=kv_dtype), [0, 1, 2, 3, 4, 3, 2, 1, 0, 2]
    found = run(engine, [REQUESTS[number] for number in numbers])
    assert engine.scheduler.preemptions > 0 and engine.pool.stats.hit_tokens > 0
    for number, one in zip(numbers, found, strict=True):
        assert one == alone(number, kv_dtype)
    assert engine.pool.used == 0


def test_the_comparison_can_fail():
    """Programs of other sizes add in another order."""
    engine, params = engine_of(invariant=False), SamplingParams(temperature=0.0, max_tokens=1, logprobs=20)
    requests = [(prompt, params) for prompt in PROMPTS[:4]]
    together = run(engine, requests, behind=0)
    one_by_one = [run(engine, [request])[0] for request in requests]
    assert [ids for ids, _ in together] == [ids for ids, _ in one_by_one], "float32: no tokens are as near as that"
    assert together != one_by_one


def test_there_is_one_program_of_each_kind():
    alone(0), alone(2)
    programs = shared().runner.all_programs()
    names = sorted(program.name for program in programs)
    assert names == ["chunk", *["first"] * 3, "score", *["steps"] * 3, "tables"]
    assert shared().runner.programs <= len(programs)
