"""The engine in a thread, and those who wait for it."""

import asyncio
import gc

import pytest

from tests.tokenspeed.engine.test_engine import PARAMS, PROMPTS, alone, engine_of, row_of
from tokenspeed.engine.async_engine import AsyncEngine, EngineDead
from tokenspeed.sampling.params import SamplingParams

LONG = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)


@pytest.fixture
def engine():
    one = AsyncEngine(engine_of(64))
    yield one
    one.close()


async def read(engine, id, prompt, params):
    return [delta async for delta in engine.stream(id, row_of(0, prompt, params))]


@pytest.mark.slow
def test_many_read_at_once(engine):
    async def all_of_them():
        return await asyncio.gather(*(read(engine, i, PROMPTS[i % 5], PARAMS[i % 5]) for i in range(9)))

    for i, deltas in enumerate(asyncio.run(all_of_them())):
        expected = alone(PROMPTS[i % 5], PARAMS[i % 5])
        assert [token for delta in deltas for token in delta.token_ids] == expected.token_ids
        assert "".join(delta.text for delta in deltas) == expected.text
        assert deltas[-1].completion.finish_reason == expected.finish_reason
        assert all(delta.completion is None for delta in deltas[:-1])


@pytest.mark.slow
def test_who_leaves_and_who_is_aborted_makes_room(engine):
    async def leave():
        async for _ in engine.stream("a", row_of(0, PROMPTS[0], LONG)):
            break
        gc.collect()
        stream = engine.stream("b", row_of(0, PROMPTS[1], LONG))
        await anext(stream)
        engine.abort("b")
        engine.abort("nobody")
        with pytest.raises(asyncio.CancelledError):
            while True:
                await anext(stream)
        return await read(engine, "b", PROMPTS[2], PARAMS[2])  # its id is free again

    assert asyncio.run(leave())[-1].completion.token_ids == alone(PROMPTS[2], PARAMS[2]).token_ids


@pytest.mark.slow
def test_an_id_that_is_under_way_and_what_cannot_fit_are_refused(engine):
    async def twice():
        first = engine.stream("a", row_of(0, PROMPTS[0], LONG))
        await anext(first)
        with pytest.raises(ValueError, match="under way"):
            await read(engine, "a", PROMPTS[1], LONG)
        await first.aclose()
        with pytest.raises(ValueError, match="params"):
            await read(engine, "c", PROMPTS[1], SamplingParams(min_p=0.5, max_tokens=3))

    asyncio.run(twice())


@pytest.mark.slow
def test_a_dead_engine_fails_all_who_wait(engine, monkeypatch):
    async def die():
        streams = [engine.stream(i, row_of(0, PROMPTS[i], LONG)) for i in range(3)]
        for stream in streams:
            await anext(stream)
        monkeypatch.setattr("tokenspeed.engine.engine.Engine.step", lambda self: 1 / 0)
        for stream in streams:
            with pytest.raises(EngineDead, match="division by zero"):
                while True:
                    await anext(stream)
        with pytest.raises(EngineDead):
            await read(engine, "late", PROMPTS[0], LONG)

    asyncio.run(asyncio.wait_for(die(), 60))


def test_a_closed_engine_says_so():
    engine = AsyncEngine(engine_of(8))
    engine.close()
    with pytest.raises(EngineDead, match="closed"):
        asyncio.run(read(engine, 1, PROMPTS[0], LONG))
