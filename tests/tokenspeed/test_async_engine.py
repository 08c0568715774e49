"""The engine in a thread, and those who wait for it."""

import asyncio
import gc

import jax
import pytest

from tests.tokenspeed.engine.test_engine import PARAMS, PROMPTS, alone
from tokenspeed.async_engine import Aborted, AsyncEngine, EngineDead
from tokenspeed.engine.pace import Pace
from tokenspeed.llm import LLM
from tokenspeed.sampling.params import SamplingParams

LONG = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine():
    one = AsyncEngine(LLM.from_pretrained("tiny", implementation="xla", max_context=128, max_batch=2))
    yield one
    one.close()


@pytest.fixture(scope="module")
def compiled(engine):
    """What is compiled after an engine is ready."""
    seen = []

    def listen(event, duration_secs, **_):
        if event.startswith("/jax/core/compile/"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


async def read(engine, id, prompt, params):
    return [delta async for delta in engine.stream(id, prompt, params)]


async def until_the_end(stream):
    while True:
        await anext(stream)


def nothing_is_held(engine):
    return engine.engine.pool.used == 0 and engine.engine.is_idle


def test_many_read_at_once(engine):
    async def all_of_them():
        return await asyncio.gather(*(read(engine, i, PROMPTS[i % 5], PARAMS[i % 5]) for i in range(9)))

    for i, deltas in enumerate(asyncio.run(all_of_them())):
        expected = alone(PROMPTS[i % 5], PARAMS[i % 5])
        assert [token for delta in deltas for token in delta.token_ids] == expected.token_ids
        assert "".join(delta.text for delta in deltas) == expected.text
        assert deltas[-1].completion.finish_reason == expected.finish_reason
        assert all(delta.completion is None for delta in deltas[:-1])


def test_nothing_is_compiled_once_it_is_ready(engine, compiled):
    """The first use of any feature included."""
    asked = [
        SamplingParams(temperature=0.0, max_tokens=3),
        SamplingParams(max_tokens=3, top_k=3, top_p=0.5, min_p=0.1, seed=1),
        SamplingParams(max_tokens=3, n=3, logprobs=20, logit_bias={5: 2.0}, min_tokens=2),
        SamplingParams(max_tokens=3, presence_penalty=1, frequency_penalty=1, repetition_penalty=1.1, top_k=400),
        SamplingParams(max_tokens=3, stop=["x"], stop_token_ids=range(9, 60), allowed_token_ids=range(5, 90)),
    ]
    prompts = [[1], list(range(1, 18)), list(range(1, 66)), list(range(1, 120))]
    assert engine.engine.runner.closed and 0 < engine.engine.runner.programs <= 40
    del compiled[:]

    async def all_of_them():
        calls = [(prompt, params) for prompt in prompts for params in asked]
        return await asyncio.gather(*(engine.generate(i, *call) for i, call in enumerate(calls)))

    found = asyncio.run(all_of_them())
    assert all(len(one.token_ids) <= 3 for one in found) and len(found[2].samples) == 3
    assert not compiled


def test_samples_of_a_request_are_those_of_a_call(engine):
    params = SamplingParams(n=3, seed=5, max_tokens=20)
    whole = asyncio.run(engine.generate(1, PROMPTS[3], params))
    expected = alone(PROMPTS[3], params)
    assert [one.token_ids for one in whole.samples] == [one.token_ids for one in expected.samples]
    deltas = asyncio.run(read(engine, 1, PROMPTS[3], params))
    for sample, one in enumerate(expected.samples):
        assert "".join(delta.text for delta in deltas if delta.sample == sample) == one.text


def test_who_leaves_and_who_is_aborted_makes_room(engine):
    async def leave():
        async for _ in engine.stream("a", PROMPTS[0], LONG):
            break
        gc.collect()
        stream = engine.stream("b", PROMPTS[1], LONG)
        await anext(stream)
        engine.abort("b")
        engine.abort("nobody")
        with pytest.raises(Aborted, match="'b'"):
            await until_the_end(stream)
        return await read(engine, "b", PROMPTS[2], PARAMS[2])  # its id is free again

    assert asyncio.run(leave())[-1].completion.token_ids == alone(PROMPTS[2], PARAMS[2]).token_ids


def test_who_leaves_while_a_step_is_held_back_need_not_wait(engine, monkeypatch):
    async def leave():
        stream = engine.stream("a", PROMPTS[0], LONG)
        await anext(stream)
        monkeypatch.setattr(engine.engine, "hold_s", lambda: 600.0)
        engine.abort("a")
        with pytest.raises(Aborted):
            await until_the_end(stream)
        with pytest.raises(ValueError, match="prompts: expected at least one token"):
            await engine.generate("b", [])
        monkeypatch.undo()
        return await read(engine, "a", PROMPTS[2], PARAMS[2])

    found = asyncio.run(asyncio.wait_for(leave(), 60))
    assert found[-1].completion.token_ids == alone(PROMPTS[2], PARAMS[2]).token_ids


def test_tokens_do_not_wait_for_a_step_that_was_taken_to_last_longer(engine, monkeypatch):
    monkeypatch.setattr(Pace, "hold", lambda *_: 600.0)
    found = asyncio.run(asyncio.wait_for(read(engine, "a", PROMPTS[2], PARAMS[2]), 60))
    assert found[-1].completion.token_ids == alone(PROMPTS[2], PARAMS[2]).token_ids


def test_who_is_cancelled_before_it_is_added_leaves_nothing(engine):
    async def leave():
        tasks = [asyncio.create_task(read(engine, i, PROMPTS[0], LONG)) for i in range(4)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await read(engine, "after", PROMPTS[1], PARAMS[2])
        return nothing_is_held(engine)

    assert asyncio.run(leave())


def test_what_is_wrong_is_told_to_who_asked_and_to_nobody_else(engine):
    vocabulary = engine.engine.runner.config.vocab_size

    async def ask():
        first = engine.stream("a", PROMPTS[0], LONG)
        await anext(first)
        for id, prompt, params, priority, error, message in (
            ("a", PROMPTS[1], LONG, 0, ValueError, "under way"),
            ([], PROMPTS[1], LONG, 0, TypeError, "unhashable"),
            ("c", PROMPTS[1], LONG, None, TypeError, "priority"),
            ("c", [vocabulary], LONG, 0, ValueError, "prompts"),
            ("c", [1] * 128, LONG, 0, ValueError, "no room in a context of 128"),
            ("c", [1], SamplingParams(stop_token_ids=range(70)), 0, ValueError, "at most 64"),
            (
                "c",
                [1],
                SamplingParams(min_tokens=1, allowed_token_ids=[2], stop_token_ids=[2]),
                0,
                ValueError,
                "does not end",
            ),
        ):
            with pytest.raises(error, match=message):
                async for _ in engine.stream(id, prompt, params, priority=priority):
                    pass
        return [delta async for delta in first][-1].completion

    assert asyncio.run(ask()).token_ids == alone(PROMPTS[0], LONG).token_ids
    assert nothing_is_held(engine)


def test_a_dead_engine_fails_all_who_wait(monkeypatch):
    llm = LLM.from_pretrained("tiny", implementation="xla", max_context=128, max_batch=1)
    monkeypatch.setattr("tokenspeed.engine.runner.Runner.prepare", lambda self, programs, progress: 0.0)
    engine = AsyncEngine(llm)
    engine.engine.runner.closed = False

    async def die():
        streams = [engine.stream(i, PROMPTS[i], LONG) for i in range(2)]
        await anext(streams[0])
        waiting = asyncio.create_task(anext(streams[1]))
        await asyncio.sleep(0)
        monkeypatch.setattr("tokenspeed.engine.engine.Engine.step", lambda self: 1 / 0)
        with pytest.raises(EngineDead, match="division by zero"):
            await until_the_end(streams[0])
        with pytest.raises(EngineDead, match="division by zero"):
            await waiting
        with pytest.raises(EngineDead):
            await read(engine, "late", PROMPTS[0], LONG)

    asyncio.run(asyncio.wait_for(die(), 60))
    assert engine.is_dead
    engine.close()


def test_a_closed_engine_says_so(monkeypatch):
    monkeypatch.setattr("tokenspeed.engine.runner.Runner.prepare", lambda self, programs, progress: 0.0)
    engine = AsyncEngine(LLM.from_pretrained("tiny", implementation="xla", max_context=128, max_batch=1))
    engine.close()
    with pytest.raises(EngineDead, match="closed"):
        asyncio.run(read(engine, 1, PROMPTS[0], LONG))
