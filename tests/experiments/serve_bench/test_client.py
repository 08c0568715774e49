"""What a client makes of the streams of different servers."""

import asyncio
import itertools
import json

import httpx2
import pytest

from experiments.serve_bench.client import CONTINUOUS, EVENTS, FINAL, Request
from experiments.serve_bench.mixes import Prompt


def answered(*events, status=200):
    """A request that was answered with these events, each in a piece of its own."""
    seen = []

    async def pieces():
        for event in events:
            yield f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()

    def handle(request):
        seen.append(json.loads(request.content))
        return httpx2.Response(status, content=pieces() if status == 200 else b"no such model")

    async def run():
        one = Request(prompt=Prompt(kind="chat", text="hi", input=1, output=4), due=0.0)
        transport = httpx2.MockTransport(handle)
        async with httpx2.AsyncClient(base_url="http://x/v1", transport=transport) as client:
            await one.run(client, "m", dict(ignore_eos=True))
        return one

    return asyncio.run(run()), seen[0]


def event(text=None, end=None, used=None, **delta):
    delta |= {} if text is None else dict(content=text)
    found = dict(choices=[dict(index=0, delta=delta, finish_reason=end)])
    return found if used is None else found | dict(usage=dict(prompt_tokens=9, completion_tokens=used))


def last(used):
    return dict(choices=[], usage=dict(prompt_tokens=9, completion_tokens=used))


def counts(one):
    return [tokens for _, tokens in one.arrivals]


def test_the_body():
    _, body = answered(event("a"), "[DONE]")
    assert body == dict(
        model="m", messages=[dict(role="user", content="hi")], max_tokens=4, temperature=0, stream=True, ignore_eos=True
    )


def test_every_event_says_how_many():
    one, _ = answered(
        event("", used=0, role="assistant"), event("ab", used=2), event("", used=3), event(None, "length", used=3),
        last(3), "[DONE]",
    )  # fmt: skip
    assert (counts(one), one.tokens, one.counted_by, one.prompt_tokens) == ([2, 1], 3, CONTINUOUS, 9)


def test_only_the_end_says_how_many():
    one, _ = answered(event("", role="assistant"), event("ab"), event("c"), event(None, "stop"), last(3), "[DONE]")
    assert (counts(one), one.tokens, one.counted_by) == ([1, 1], 3, FINAL)


def test_nothing_says_how_many():
    one, _ = answered(event("a", role="assistant"), event(""), event("c", "stop"), "[DONE]")
    assert (counts(one), one.tokens, one.counted_by, one.prompt_tokens) == ([1, 1, 1], 3, EVENTS, None)


def test_reasoning_is_generated_too():
    one, _ = answered(event(reasoning_content="hm", role="assistant"), event("a"), "[DONE]")
    assert counts(one) == [1, 1]


@pytest.mark.parametrize(
    "events, status, error, detail",
    [
        ((), 404, "status 404", "no such model"),
        ((event("a"), dict(error=dict(message="out of memory"))), 200, "error in the stream", "out of memory"),
        (("[DONE]",), 200, "no token", ""),
        (("nonsense",), 200, "JSONDecodeError", "Expecting value"),
    ],
)
def test_errors_have_a_kind(events, status, error, detail):
    one, _ = answered(*events, status=status)
    assert (one.status, one.error) == (status, error) and detail in one.detail and one.ended > 0


def test_times_are_from_when_it_was_due():
    one = Request(prompt=Prompt(kind="chat", text="", input=1, output=4), due=10.0, sent=10.5)
    for now, used in itertools.zip_longest((11.0, 11.2, 11.4), (1, 2, 3)):
        one.take(event("a", used=used), now)
    assert (one.ttft_ms, one.whole_ms) == (pytest.approx(1000), pytest.approx(1400))
    assert one.gaps_ms == pytest.approx([200, 200]) and one.tpot_ms == pytest.approx(200)
