"""/v1/chat/completions, by the client that people have and by the lines on the wire."""

import asyncio
import time

import httpx2 as httpx
import openai
import pytest

from tokenspeed.sampling.params import SamplingParams

pytestmark = pytest.mark.slow

MESSAGES = [dict(role="user", content="What does an owl say?")]
GREEDY = dict(model="any", messages=MESSAGES, temperature=0, max_tokens=20)


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def expected(served):
    """What the model itself says."""
    ids = served.llm.encode(served.llm.tokenizer.render_chat(MESSAGES))
    (found,) = served.llm.generate([ids], SamplingParams(temperature=0, max_tokens=20, logprobs=2))
    return found


def test_a_whole_answer(client, expected):
    found = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2)
    assert found.object == "chat.completion" and found.model == "any" and found.id.startswith("chatcmpl-")
    (choice,) = found.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert [one.logprob for one in choice.logprobs.content] == pytest.approx(
        [one.logprob for one in expected.logprobs], abs=1e-3
    ), "float32, by programs of other shapes"
    assert all(len(one.top_logprobs) == 2 for one in choice.logprobs.content)
    assert "".join(bytes(one.bytes).decode() for one in choice.logprobs.content).strip() == expected.text.strip()
    usage = found.usage
    assert usage.prompt_tokens == len(expected.prompt_token_ids)
    assert usage.completion_tokens == len(expected.token_ids) + 1, "the one that ended it was drawn too"
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_has_an_event_for_each_token(served, expected):
    options = dict(include_usage=True, continuous_usage_stats=True)
    *events, last = served.events("/v1/chat/completions", **GREEDY, stream_options=options)
    assert len(events) == len(expected.token_ids) + 1
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0]["role"] == "assistant" and all("role" not in delta for delta in deltas[1:])
    assert "".join(delta["content"] for delta in deltas) == expected.text
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["stop"]
    assert {event["id"] for event in [*events, last]} == {last["id"]}
    assert [event["usage"]["completion_tokens"] for event in events] == list(range(1, len(events) + 1))
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == len(events)
    assert all("usage" not in event for event in served.events("/v1/chat/completions", **GREEDY))


def test_the_client_streams(client, expected):
    stream = client.chat.completions.create(**GREEDY, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected.text


def test_the_asynchronous_client(served, expected):
    async def three() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            calls = [client.chat.completions.create(**GREEDY) for _ in range(3)]
            return [found.choices[0].message.content for found in await asyncio.gather(*calls)]

    assert asyncio.run(three()) == [expected.text] * 3


def test_samples_differ_and_a_seed_draws_them_again(client):
    how = dict(model="any", messages=MESSAGES, n=3, seed=7, max_tokens=12, temperature=1.5)
    one, two = (client.chat.completions.create(**how) for _ in range(2))
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in two.choices] and len(set(texts)) > 1
    assert [choice.index for choice in one.choices] == [0, 1, 2]


def test_a_stop_string_is_held_back(served):
    plain = served.post("/v1/chat/completions", **GREEDY).json()["choices"][0]["message"]["content"]
    stop = plain[3:6]
    events = served.events("/v1/chat/completions", **GREEDY, stop=[stop])
    text = "".join(event["choices"][0]["delta"]["content"] for event in events)
    assert text == plain[: plain.index(stop)] and events[-1]["choices"][0]["finish_reason"] == "stop"


def test_no_more_than_the_context(client, served):
    found = client.chat.completions.create(model="any", messages=MESSAGES, extra_body=dict(ignore_eos=True))
    assert found.choices[0].finish_reason == "length"
    assert found.usage.total_tokens == served.llm.max_context


@pytest.mark.parametrize(
    "changed, param, message",
    [
        (dict(temperature=-1), "temperature", "temperature: expected a number 0 or more, got -1.0"),
        (dict(temperature="hot"), "temperature", "temperature: Input should be a valid number"),
        (dict(stop=[1]), "stop", "stop"),
        (dict(max_tokens=0), "max_tokens", "max_tokens: expected an integer from 1"),
        (dict(max_tokens=5, max_completion_tokens=5), "max_tokens", "max_tokens: expected it or"),
        (dict(top_logprobs=2), "top_logprobs", "top_logprobs: expected logprobs with it"),
        (dict(logprobs=True, top_logprobs=21), "top_logprobs", "top_logprobs: expected 0 to 20, got 21"),
        (dict(logit_bias={"a": 1}), "logit_bias", "logit_bias: expected token ids for keys"),
        (dict(messages=[]), "messages", "messages: expected at least one"),
        (dict(chat_template_kwargs=dict(tools=[])), "chat_template_kwargs", "chat_template_kwargs: expected variables"),
        (dict(max_tokens=None, max_completion_tokens=0), "max_completion_tokens", "max_completion_tokens: expected an"),
        (dict(messages=[dict(role="user", content="owl " * 200)]), "messages", "messages: "),
        (dict(messages=[dict(role="user", content=[dict(type="image_url")])]), "messages", "messages: content of type"),
        (dict(messages=[dict(role="user")]), "messages", "messages.0.content: Field required"),
        (dict(tools=[dict(type="function")]), "tools", "tools: is not supported"),
        (dict(response_format=dict(type="json_object")), "response_format", "response_format: is not supported"),
        (dict(best=1), "best", "best: is not known"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(served, changed, param, message):
    response = served.post("/v1/chat/completions", **GREEDY | changed)
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == param and error["message"].startswith(message) and "\n" not in error["message"]


@pytest.mark.parametrize(
    "same", [dict(tools=[]), dict(response_format=dict(type="text")), dict(user="me"), dict(tool_choice="none")]
)
def test_what_changes_nothing_passes(served, same):
    assert served.post("/v1/chat/completions", **GREEDY | dict(max_tokens=1) | same).status_code == 200


def test_errors_of_the_client(client):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**GREEDY | dict(temperature=-1))
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_a_client_that_leaves_frees_its_pages(served, monkeypatch):
    step = served.engine.step
    monkeypatch.setattr(served.engine, "step", lambda: time.sleep(0.1) or step())  # its tokens would take ten seconds
    body = dict(messages=MESSAGES, ignore_eos=True, stream=True)
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=60) as response:
        next(response.iter_lines())
        assert served.engine.pool.used > 0
    end = time.monotonic() + 3
    while served.engine.pool.used > 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert served.engine.pool.used == 0
    monkeypatch.undo()
    for _ in range(20):  # a whole pool and more
        assert served.post("/v1/chat/completions", messages=MESSAGES, max_tokens=2).status_code == 200
