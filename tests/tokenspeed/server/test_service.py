"""The service: what it says of itself while it loads, when it cannot, and when its engine is stuck."""

import threading
import time

import httpx2 as httpx
import pytest

from tests.tokenspeed.server.conftest import until_ready
from tokenspeed.llm import LLM
from tokenspeed.server import serve

MESSAGES = [dict(role="user", content="Hello")]


def run(load):
    """The thread and the address of a server."""
    bound = serve.bind("127.0.0.1", 0)
    server, _ = serve.server(load)
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[bound]))
    thread.start()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            httpx.get(f"{url}/health")
            return thread, url
        except httpx.TransportError:
            time.sleep(0.01)
    raise TimeoutError("nobody listens")


def test_while_it_loads_it_says_so():
    loaded = threading.Event()

    def load():
        loaded.wait(60)
        raise MemoryError("no room")

    thread, url = run(load)
    try:
        assert httpx.get(f"{url}/health").status_code == 200
        for response in (
            httpx.get(f"{url}/ready"), httpx.post(f"{url}/v1/chat/completions", json=dict(messages=MESSAGES)),
        ):  # fmt: skip
            assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
            assert response.json()["error"]["message"] == "the model is not ready: loading weights"
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tokenspeed"
    finally:
        loaded.set()
        thread.join(30)
    assert not thread.is_alive(), "a server whose model cannot be loaded ends"


def test_what_cannot_be_loaded_is_what_it_fails_with(monkeypatch):
    def load() -> LLM:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        serve.serve(load, host="127.0.0.1", port=0)


@pytest.mark.slow
def test_a_stuck_engine_is_not_ready(served, monkeypatch):
    goes_on = threading.Event()
    engine = served.engine
    step = engine.step

    def stuck():
        goes_on.wait(60)
        return step()

    monkeypatch.setattr(engine, "step", stuck)
    answers = []
    asked = threading.Thread(
        target=lambda: answers.append(served.post("/v1/chat/completions", messages=MESSAGES, max_tokens=3))
    )
    asked.start()
    begun = time.monotonic()
    while httpx.get(f"{served.url}/ready").status_code == 200 and time.monotonic() < begun + 30:
        time.sleep(0.1)
    try:
        assert time.monotonic() - begun < 5.5
        assert httpx.get(f"{served.url}/ready").json()["error"]["message"].startswith("the engine has not answered for")
        assert httpx.get(f"{served.url}/health").status_code == 200
    finally:
        monkeypatch.undo()
        goes_on.set()
        asked.join(60)
    assert answers[0].status_code == 200 and httpx.get(f"{served.url}/ready").status_code == 200


@pytest.mark.slow
def test_a_step_that_fails_is_told_and_ends_the_server(monkeypatch):
    llm = LLM.from_pretrained("tiny", max_context=128, max_batch=2, implementation="xla")
    with serve.bind("127.0.0.1", 0) as bound:
        server, service = serve.server(lambda: llm, write=lambda line: None)
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[bound]))
        thread.start()
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        until_ready(url)

        def fail():
            raise RuntimeError("the device is gone")

        monkeypatch.setattr(service.engine, "step", fail)
        response = httpx.post(f"{url}/v1/chat/completions", json=dict(messages=MESSAGES), timeout=60)
        message = response.json()["error"]["message"]
        assert response.status_code == 500 and "the device is gone" in message
        assert message.endswith(f"(request {response.headers['x-request-id']})")
        thread.join(30)
        assert not thread.is_alive() and isinstance(service.failure, RuntimeError)


@pytest.mark.slow
def test_told_to_end_it_lets_requests_end_for_a_while_and_then_they_fail(monkeypatch):
    llm = LLM.from_pretrained("tiny", max_context=128, max_batch=2, implementation="xla")
    with serve.bind("127.0.0.1", 0) as bound:
        server, service = serve.server(lambda: llm, write=lambda line: None, drain_s=2)
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[bound]))
        thread.start()
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        until_ready(url)
        step = service.engine.step
        monkeypatch.setattr(service.engine, "step", lambda: time.sleep(0.2) or step())
        found = {}

        def ask(tokens):
            body = dict(prompt="The", max_tokens=tokens, ignore_eos=True, stream=True)
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
                found[tokens] = [line for line in response.iter_lines() if line]

        asked = [threading.Thread(target=ask, args=[tokens]) for tokens in (4, 100)]
        for one in asked:
            one.start()
        while service.admission.under_way < 2:
            time.sleep(0.01)
        server.drain()
        for one in (*asked, thread):
            one.join(30)
            assert not one.is_alive()
    assert found[4][-1] == "data: [DONE]" and len(found[4]) == 5
    assert found[100][-1] == "data: [DONE]" and "the engine was closed" in found[100][-2] and len(found[100]) > 2
