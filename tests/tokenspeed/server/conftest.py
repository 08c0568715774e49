"""A server of the small model, over a real socket, for all tests of a worker."""

import dataclasses
import json
import threading
import time
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from tokenspeed.llm import LLM
from tokenspeed.server import serve
from tokenspeed.weights.tiny import TINY

CONTEXT = 128


@dataclasses.dataclass
class Served:
    """Where it is, and the model itself, for what it should say."""

    url: str
    llm: LLM

    def post(self, path: str, **body) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60)

    def events(self, path: str, **body) -> list[dict]:
        """Of a stream, whose end is checked."""
        with httpx.stream("POST", f"{self.url}{path}", json=body | dict(stream=True), timeout=60) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    llm = LLM.from_pretrained(TINY, max_context=CONTEXT, max_batch=4, implementation="xla")
    with serve.bind("127.0.0.1", 0) as bound:
        server = serve.server(lambda: llm)
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[bound]))
        thread.start()
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        try:
            end = time.monotonic() + 300
            while time.monotonic() < end:
                try:
                    if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            else:
                raise TimeoutError("the server is not ready")
            yield Served(url, llm)
        finally:
            server.should_exit = True
            thread.join()
