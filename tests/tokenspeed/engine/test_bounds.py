"""Requests at the bounds of an engine's context and of its pool, and the end of all of them at once."""

import pytest

from tests.tokenspeed.engine.test_engine import (
    CONTEXT,
    PAGE,
    PAGES,
    PROMPTS,
    alone,
    engine_of,
    inputs,
    llm,
    row_of,
    run,
)
from tokenspeed.sampling.params import SamplingParams

SHORT = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)


def prompt_of(tokens: int, first: int = 3) -> tuple[int, ...]:
    return tuple(range(first, first + tokens))


def add(engine, prompt, params, *, first=0, priority=0):
    """The rows of a request's samples, whose ids are the numbers from `first` on."""
    rows = inputs().rows(0, prompt, params)
    for id, row in enumerate(rows, first):
        engine.add(id, row, leader=None if id == first else first, priority=priority)
    return rows


def nothing_is_left(engine):
    return engine.is_idle and engine.scheduler.is_empty and (engine.pool.used, engine.pool.available) == (0, PAGES)


@pytest.mark.slow
def test_a_prompt_that_leaves_room_for_one_token():
    engine, prompt = engine_of(), prompt_of(CONTEXT - 1)
    (row,) = add(engine, prompt, SHORT)
    run(engine)
    assert row.ids == [int(llm().logits([prompt])[0, -1].argmax())] and row.reason == "length"
    assert nothing_is_left(engine)


@pytest.mark.parametrize("max_tokens", [None, 1])
@pytest.mark.parametrize("tokens", [CONTEXT, CONTEXT + 1])
def test_a_prompt_that_leaves_no_room_is_refused(tokens, max_tokens):
    """Before it is a row, and by an engine whose row comes from elsewhere."""
    engine, params = engine_of(), SamplingParams(max_tokens=max_tokens)
    with pytest.raises(ValueError, match=f"prompts: {tokens} tokens leave no room in a context of {CONTEXT}"):
        add(engine, prompt_of(tokens), params)
    with pytest.raises(ValueError, match="max_tokens: expected"):
        engine.add(0, row_of(0, list(prompt_of(tokens)), params))
    assert nothing_is_left(engine)


def test_a_request_larger_than_the_pool_is_refused():
    pages = CONTEXT // PAGE - 1
    engine = engine_of(pages)
    with pytest.raises(ValueError, match=f"prompt and max_tokens: expected at most {pages} pages, the whole pool"):
        add(engine, prompt_of(pages * PAGE), SamplingParams(max_tokens=2))
    assert engine.scheduler.is_empty and engine.pool.available == pages


@pytest.mark.slow
def test_who_waits_for_pages_that_others_hold():
    """There are rows for all of them."""
    engine = engine_of()
    asked = [(prompt_of(CONTEXT - 8, 3), SHORT), (prompt_of(CONTEXT - 8, 4), SHORT), (prompt_of(49, 5), SHORT)]
    rows = [add(engine, *one, first=i)[0] for i, one in enumerate(asked)]
    while engine.pool.available:
        engine.step()
    asked.append((PROMPTS[0], LONG))
    rows += add(engine, *asked[-1], first=3)
    engine.step()
    assert [one.id for one in engine.scheduler.waiting] == [3] and len(engine.scheduler.running) == 3
    run(engine)
    assert [row.ids for row in rows] == [alone(*one).token_ids for one in asked]
    assert nothing_is_left(engine)


@pytest.mark.slow
def test_requests_that_are_cancelled_together_in_every_state():
    engine = engine_of()
    several = SamplingParams(temperature=0.9, seed=1, max_tokens=60, ignore_eos=True, n=3)
    add(engine, prompt_of(60), several)
    add(engine, prompt_of(40, 9), LONG, first=3)
    while not engine.scheduler.preemptions:
        engine.step()
    add(engine, prompt_of(100, 20), SHORT, first=4, priority=-1)
    add(engine, PROMPTS[1], SHORT, first=5, priority=1)
    engine.step()
    waiting, running = engine.scheduler.waiting, engine.scheduler.running
    assert any(one.preemptions for one in waiting) and any(one.queue_steps is None for one in waiting)
    assert any(one.in_prefill for one in running) and any(one.pending and not one.in_prefill for one in running)
    assert sum(one.id in range(3) for one in waiting + running) == 3, "the samples of one prompt"
    for id in range(6):
        engine.cancel(id)
    assert engine.scheduler.is_empty
    run(engine)
    assert nothing_is_left(engine)
    (row,) = add(engine, PROMPTS[0], LONG)
    run(engine)
    assert row.ids == alone(PROMPTS[0], LONG).token_ids
    assert nothing_is_left(engine)
