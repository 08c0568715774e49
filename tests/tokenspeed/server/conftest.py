"""A server of the small model, over a real socket, for all tests of a worker."""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from tokenspeed.engine.engine import Engine
from tokenspeed.llm import LLM
from tokenspeed.server import serve
from tokenspeed.server.admission import Admission
from tokenspeed.server.ceiling import Ceiling


@dataclasses.dataclass
class Served:
    """Where it is, and the model itself, for what it should say."""

    url: str
    llm: LLM
    engine: Engine
    log: list[str]
    admission: Admission

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
def served(compiled_once) -> Iterator[Served]:
    llm = LLM.from_pretrained("tiny", max_context=128, max_batch=2, implementation="xla")  # as test_async_engine.py's
    lines: list[str] = []
    with serve.bind("127.0.0.1", 0) as bound:
        server, service = serve.server(lambda: llm, write=lines.append, ceiling=lambda: Ceiling(2e9, "given"))
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[bound]))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        try:
            with compiled_once():
                thread.start()
                until_ready(url)
            assert service.engine is not None
            yield Served(url, llm, service.engine, lines, service.admission)
        finally:
            server.should_exit = True
            thread.join()


def until_ready(url: str, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError("the server is not ready")
