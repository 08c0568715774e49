"""/v1/completions, and what stands beside it."""

import json
import re

import httpx2 as httpx
import openai
import pytest

from tokenspeed.sampling.params import SamplingParams
from tokenspeed.server import answers

pytestmark = pytest.mark.slow

PROMPT = "Once upon a time"


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def said(served, prompt, **params):
    (found,) = served.llm.generate([prompt], SamplingParams(temperature=0, **params))
    return found


@pytest.mark.parametrize("as_ids", [False, True])
def test_a_prompt_of_text_or_of_ids(client, served, as_ids):
    expected = said(served, PROMPT, max_tokens=16)
    prompt = expected.prompt_token_ids if as_ids else PROMPT
    found = client.completions.create(model="any", prompt=prompt, temperature=0)
    assert found.object == "text_completion"
    assert (found.choices[0].text, found.choices[0].finish_reason) == (expected.text, "length")
    assert found.usage.completion_tokens == 16


def test_several_prompts_with_several_samples(client, served):
    prompts = [PROMPT, "The cat", "One day"]
    found = client.completions.create(model="any", prompt=prompts, max_tokens=5, n=2, seed=3, temperature=0.9)
    assert [choice.index for choice in found.choices] == list(range(6))
    alone = [
        client.completions.create(model="any", prompt=p, max_tokens=5, n=2, seed=3, temperature=0.9) for p in prompts
    ]
    assert [choice.text for choice in found.choices] == [choice.text for one in alone for choice in one.choices]
    assert found.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)


def test_several_prompts_in_a_stream(served):
    prompts = [PROMPT, "The cat"]
    body = dict(prompt=prompts, max_tokens=6, temperature=0)
    whole = served.post("/v1/completions", **body).json()
    events = served.events("/v1/completions", **body, stream_options=dict(include_usage=True))
    texts = {0: "", 1: ""}
    for event in events[:-1]:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert [texts[0], texts[1]] == [choice["text"] for choice in whole["choices"]]
    assert events[-1]["usage"] == whole["usage"] and len(events) == 13


def test_scoring(client, served):
    expected = said(served, PROMPT, max_tokens=1, prompt_logprobs=2)
    how = dict(model="any", prompt=PROMPT, echo=True, logprobs=2, max_tokens=0, temperature=0)
    found = client.completions.create(**how)
    (choice,) = found.choices
    assert choice.text == served.llm.tokenizer.decode(expected.prompt_token_ids, skip_special_tokens=False)
    scores = choice.logprobs.token_logprobs
    assert scores[0] is None and len(scores) == len(expected.prompt_token_ids) == found.usage.prompt_tokens
    assert scores[1:] == pytest.approx([one.logprob for one in expected.prompt_logprobs[1:]], abs=1e-3)
    assert "".join(choice.logprobs.tokens) and found.usage.completion_tokens == 0
    assert len(choice.logprobs.text_offset) == len(choice.logprobs.tokens) and choice.logprobs.text_offset[0] == 0


def test_an_echo_and_what_follows(client, served):
    expected = said(served, PROMPT, max_tokens=4)
    found = client.completions.create(model="any", prompt=PROMPT, echo=True, logprobs=0, max_tokens=4, temperature=0)
    (choice,) = found.choices
    assert choice.text.endswith(expected.text) and len(choice.text) > len(expected.text)
    assert len(choice.logprobs.token_logprobs) == len(expected.prompt_token_ids) + 4


@pytest.mark.parametrize(
    "how", [dict(max_tokens=6), dict(max_tokens=0, echo=True), dict(max_tokens=6, echo=True, n=2, temperature=0.9)]
)
def test_a_stream_says_of_its_tokens_what_a_whole_answer_does(served, how):
    body = dict(prompt=[PROMPT, "The cat"], logprobs=2, seed=3, temperature=0) | how
    whole = served.post("/v1/completions", **body).json()["choices"]
    pieces = [[] for _ in whole]
    for event in served.events("/v1/completions", **body):
        (choice,) = event["choices"]
        pieces[choice["index"]].append(choice)
    for expected, some in zip(whole, pieces, strict=True):
        assert "".join(one["text"] for one in some) == expected["text"]
        assert some[-1]["finish_reason"] == expected["finish_reason"]
        for name, values in expected["logprobs"].items():
            found = [value for one in some if one["logprobs"] for value in one["logprobs"][name]]
            assert len(found) == len(values) == len(expected["logprobs"]["tokens"])
            if name in ("tokens", "text_offset"):
                assert found == values
            if name == "token_logprobs":
                assert found[bool(how.get("echo")) :] == pytest.approx(values[bool(how.get("echo")) :], abs=1e-3)


def test_an_error_of_ours_ends_a_stream_too(served, monkeypatch):
    told, seen = answers.events_of, []

    def fails(delta):
        seen.append(delta)
        if len(seen) > 2:
            raise KeyError("the client's text")
        return told(delta)

    monkeypatch.setattr(answers, "events_of", fails)
    body = dict(prompt=PROMPT, stream=True, ignore_eos=True)
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=60) as response:
        *_, error, last = [line for line in response.iter_lines() if line]
    message = json.loads(error.removeprefix("data: "))["error"]["message"]
    assert message == f"internal error: KeyError (request {response.headers['x-request-id']})"
    assert last == "data: [DONE]"
    monkeypatch.undo()
    assert served.post("/v1/completions", prompt=PROMPT).status_code == 200
    assert served.admission.under_way == 0


def test_a_prompt_that_comes_again_was_cached(client):
    prompt = PROMPT + ", there was a little girl who had a red ball. " * 5
    one, two = (client.completions.create(model="any", prompt=prompt, max_tokens=2, temperature=0) for _ in range(2))
    assert one.usage.prompt_tokens > 64 and two.usage.prompt_tokens_details.cached_tokens == 64
    assert one.choices[0].text == two.choices[0].text


@pytest.mark.parametrize(
    "changed, param",
    [
        (dict(max_tokens=0), "max_tokens"),
        (dict(prompt=[]), "prompt"),
        (dict(prompt=[1 << 30]), "prompts"),
        (dict(prompt=[["a"]]), "prompt"),
        (dict(best_of=2), "best_of"),
        (dict(suffix="end"), "suffix"),
        (dict(logprobs=21), "logprobs"),
        (dict(logit_bias={"9" * 5000: 1}), "logit_bias"),
        (dict(prompt="a word " * 400_000), "prompt"),
        (dict(model="m" * 1000), "model"),
        (dict(n=0), "n"),
        (dict(prompt=["a"] * 128, n=9), "n"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(served, changed, param):
    response = served.post("/v1/completions", **dict(prompt=PROMPT) | changed)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_too_many_samples_are_refused_by_both_numbers(served):
    message = served.post("/v1/completions", prompt=["a"] * 128, n=128).json()["error"]["message"]
    assert message == "prompt, n: expected at most 1024 samples together, got 128 prompts with n = 128"


def test_token_ids_there_and_back(served):
    found = served.post("/tokenize", prompt=PROMPT).json()
    assert found["tokens"] == served.llm.encode(PROMPT) and found["count"] == len(found["tokens"])
    assert PROMPT in served.post("/detokenize", tokens=found["tokens"]).json()["prompt"]
    messages = [dict(role="user", content="Hello")]
    chat = served.post("/tokenize", messages=messages).json()["tokens"]
    assert chat == served.llm.encode(served.llm.tokenizer.render_chat(messages))
    assert served.post("/tokenize").status_code == 400


def test_what_is_served(client, served):
    (model,) = client.models.list().data
    assert model.id == "tokenspeed" and model.to_dict()["max_model_len"] == served.llm.max_context
    assert client.models.retrieve("tokenspeed").id == "tokenspeed"
    assert httpx.get(f"{served.url}/health").status_code == 200
    assert httpx.get(f"{served.url}/version").json()["version"]
    paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/health", "/ready"} <= paths.keys()


def test_the_page_takes_nothing_from_outside(served):
    page = httpx.get(f"{served.url}/")
    assert page.headers["content-type"].startswith("text/html") and "<textarea" in page.text
    assert "http://" not in page.text and "https://" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_the_page_finds_the_share_of_the_ceiling_in_the_metrics(served):
    served.post("/v1/completions", prompt=PROMPT, ignore_eos=True)
    (pattern,) = re.findall(r"/(\^.*ceiling.*\$)/m", httpx.get(f"{served.url}/").text)
    (share,) = re.findall(pattern, httpx.get(f"{served.url}/metrics").text, re.MULTILINE)
    assert float(share) > 0


@pytest.mark.parametrize("method, path, status", [("GET", "/v2", 404), ("GET", "/v1/completions", 405)])
def test_what_is_not_there(served, method, path, status):
    response = httpx.request(method, served.url + path)
    assert response.status_code == status and response.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"prompt": "\\ud800"}'])
def test_bodies_that_are_none(served, body):
    response = httpx.post(f"{served.url}/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
