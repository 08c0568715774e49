"""Clients that leave before their answer is there: nobody works on for them, and nobody asks all the time."""

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from tokenspeed.server import app
from tokenspeed.server.errors import ApiError
from tokenspeed.server.log import CLOSED


class Work:
    """A generation that takes its time."""

    def __init__(self, seconds: float):
        self.figures: dict[str, Any] = {}
        self.ended = False
        self._seconds = seconds

    async def whole(self):
        try:
            await asyncio.sleep(self._seconds)
            return dict(said="A")
        finally:
            self.ended = True

    async def events(self):
        yield str(await self.whole())


def answered(work: Any, *, streamed: bool, stays_s: float) -> tuple[Any, int]:
    """What comes of it for a client that stays for so long, and how often it was asked for whether it is there."""
    asked = 0

    async def receive():
        nonlocal asked
        asked += 1
        await asyncio.sleep(stays_s)
        return dict(type="http.disconnect")

    async def call():
        request = Request(dict(type="http", state=dict(figures={})), receive)
        async with asyncio.timeout(5):
            return await app.answered(work, streamed, request), asyncio.all_tasks()

    async def alone():
        answer, tasks = await call()
        assert tasks == {asyncio.current_task()}, "nothing waits on"
        return answer

    return asyncio.run(alone()), asked


@pytest.mark.parametrize("streamed", [False, True])
def test_who_stays_is_asked_once(streamed):
    answer, asked = answered(Work(0.3), streamed=streamed, stays_s=60)
    assert answer.status_code == 200 and asked == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_who_leaves_ends_the_work(streamed):
    work = Work(60)
    with pytest.raises(ApiError) as error:
        answered(work, streamed=streamed, stays_s=0.01)
    assert error.value.status == CLOSED and work.ended


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_is_there_is_given(streamed):
    answer, _ = answered(Work(0), streamed=streamed, stays_s=0)
    assert answer.status_code == 200
