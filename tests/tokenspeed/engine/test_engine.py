"""The engine: requests that come and go give the tokens that each gives alone."""

import dataclasses
import functools

import numpy as np
import pytest

from tokenspeed.completion import Completion
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.input_processor import InputProcessor
from tokenspeed.engine.limits import Limits
from tokenspeed.engine.row import Row
from tokenspeed.engine.runner import Runner, Sizes
from tokenspeed.engine.shapes import any_size
from tokenspeed.llm import LLM
from tokenspeed.sampling.params import SamplingParams

CONTEXT, PAGE, PAGES = 128, 16, 20
"""PAGES: enough for four rows of PARAMS. Engines with as many share their programs."""
PROMPTS = (
    "Once upon a time there was a little dog who",
    "The cat",
    "A bird sat on",
    "One day, a girl named Lily went to the park. She saw a big",
    "Once upon a time there was a little cat who",
)
PARAMS = (
    SamplingParams(temperature=0.0, max_tokens=20),
    SamplingParams(temperature=0.8, max_tokens=30, seed=1, logprobs=2),
    SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True),
    SamplingParams(temperature=1.0, max_tokens=40, seed=2, frequency_penalty=0.5),
    SamplingParams(temperature=0.7, max_tokens=17, seed=3, top_k=20, stop=["park"]),
)


@functools.cache
def llm() -> LLM:
    return LLM.from_pretrained("tiny", implementation="xla")


def inputs() -> InputProcessor:
    return InputProcessor(llm().model.config, llm().tokenizer, CONTEXT)


@functools.cache
def alone(prompt: str | tuple[int, ...], params: SamplingParams) -> Completion:
    """Each sample with nobody beside it, and nothing known of its prompt."""
    engine, samples = lone(), []
    for row in inputs().rows(0, prompt, params):
        engine.add(row.sample, row)
        run(engine)
        samples.append(row.completion())
    return dataclasses.replace(samples[0], samples=samples)


@functools.cache
def lone() -> Engine:
    return engine_of(reuse=False)


def engine_of(pages: int = PAGES, *, rows: int = 4, budget: int = 64, steps: int = 1, reuse: bool = True) -> Engine:
    sizes = Sizes(pages=pages, page_size=PAGE, slots=rows, max_context=CONTEXT)
    shapes = any_size(max_rows=rows, tokens=32, max_context=CONTEXT, steps=steps)
    runner = Runner(llm().model, sizes, shapes, implementation="xla", prefill_backend="xla")

    limits = Limits(max_rows=rows, token_budget=budget, chunk=32, max_context=CONTEXT, overtakes=2)
    return Engine(runner, limits, steps=steps, reuse=reuse)


def row_of(number: int, prompt: str | list[int], params: SamplingParams) -> Row:
    one = llm()
    return Row(
        number, one.encode(prompt), params, 0, 0, tokenizer=one.tokenizer, max_context=CONTEXT, config=one.model.config
    )


def run(engine: Engine) -> None:
    for _ in range(1000):
        if engine.is_idle:
            return
        engine.step()
    pytest.fail("the engine does not come to an end")


@pytest.mark.slow
@pytest.mark.parametrize("more, steps", [(0, 1), (60, 4)])
def test_together_as_alone(more, steps):
    """Also where their outputs are so long that the pool is not enough for four."""
    engine = engine_of(steps=steps)
    each = [dataclasses.replace(one, max_tokens=one.max_tokens + more, ignore_eos=more > 0) for one in PARAMS]
    asked = [(PROMPTS[i % 5], each[(i + i // 5) % 5]) for i in range(12)]
    rows = [row_of(i, *one) for i, one in enumerate(asked)]
    for i, row in enumerate(rows):
        engine.add(i, row)
        engine.step()  # they arrive while others run
    run(engine)
    for row, (prompt, params) in zip(rows, asked, strict=True):
        expected = alone(prompt, params)
        assert (row.ids, row.text, row.reason) == (expected.token_ids, expected.text, expected.finish_reason)
        if params.logprobs is not None:
            assert row.logprobs is not None and expected.logprobs is not None
            found = [one.logprob for one in row.logprobs]
            # the order of float32 sums follows the number of rows
            np.testing.assert_allclose(found, [one.logprob for one in expected.logprobs], rtol=0, atol=1e-4)
    assert (engine.scheduler.preemptions > 0) == (more > 0)
    assert engine.pool.used == 0 and engine.pool.available == PAGES


@pytest.mark.slow
def test_a_prompt_that_is_known_is_not_computed_again():
    engine, prompt = engine_of(), PROMPTS[3] + " " + PROMPTS[0]
    params = SamplingParams(temperature=0.0, max_tokens=8)
    for i in range(2):
        row = row_of(i, prompt, params)
        engine.add(i, row)
        run(engine)
        assert row.ids == alone(prompt, params).token_ids
    assert engine.pool.stats.hit_tokens == (len(row.prompt) - 1) // PAGE * PAGE > 0


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 4])
def test_cancelled_requests_leave_nothing(after):
    engine = engine_of()
    rows = [row_of(i, PROMPTS[i % 5], PARAMS[0]) for i in range(8)]
    for i, row in enumerate(rows):
        engine.add(i, row)
    for _ in range(after):
        engine.step()
    for i in range(8):
        engine.cancel(i)
    engine.cancel("nobody")
    run(engine)
    assert engine.pool.used == 0 and all(row.reason is None or len(row.ids) for row in rows)
    again = row_of(9, PROMPTS[0], PARAMS[0])
    engine.add(9, again)
    run(engine)
    assert again.ids == alone(PROMPTS[0], PARAMS[0]).token_ids


def test_what_can_never_fit_and_who_is_there_already_is_refused():
    engine = engine_of(4)
    with pytest.raises(ValueError, match="the whole pool"):
        engine.add(1, row_of(1, PROMPTS[3], SamplingParams(max_tokens=100)))
    engine.add(2, row_of(2, PROMPTS[1], PARAMS[2]))
    with pytest.raises(ValueError, match="not under way"):
        engine.add(2, row_of(2, PROMPTS[1], PARAMS[2]))
    with pytest.raises(ValueError, match="stop_token_ids: expected at most 64"):
        engine.add(3, row_of(3, PROMPTS[1], SamplingParams(stop_token_ids=range(100), max_tokens=3)))
    with pytest.raises(ValueError, match="allowed_token_ids"):
        ids = list(llm().model.config.eos_ids)
        engine.add(3, row_of(3, PROMPTS[1], SamplingParams(allowed_token_ids=ids, min_tokens=1, max_tokens=3)))


@pytest.mark.slow
def test_how_likely_a_prompt_is():
    """Chunked, beside others, and of a prompt whose pages are known: of each token, given those before it."""
    engine, prompt = engine_of(), f"{PROMPTS[3]} {PROMPTS[0]} {PROMPTS[3]}"
    params = SamplingParams(temperature=0.0, max_tokens=3, prompt_logprobs=2)
    known, other, row = row_of(0, prompt, PARAMS[2]), row_of(1, PROMPTS[1], PARAMS[0]), row_of(2, prompt, params)
    engine.add(0, known)
    run(engine)
    engine.add(1, other)
    engine.add(2, row)
    run(engine)
    assert engine.pool.stats.hit_tokens == 0, "it was not looked for"
    whole = row.completion()
    logits = np.asarray(llm().logits([row.prompt])[0], np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    assert whole.prompt_logprobs[0] is None and len(whole.prompt_logprobs) == len(row.prompt) > 32
    for i, one in enumerate(whole.prompt_logprobs[1:]):
        assert one.token_id == row.prompt[i + 1] and len(one.top) == 2
        assert one.rank == 1 + (expected[i] > expected[i, one.token_id]).sum()
        np.testing.assert_allclose(one.logprob, expected[i, one.token_id], rtol=0, atol=1e-4)  # sums of float32
    assert whole.token_ids == alone(prompt, PARAMS[0]).token_ids[:3]
    assert other.completion().prompt_logprobs is None
