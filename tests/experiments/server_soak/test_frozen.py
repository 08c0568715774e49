"""An engine whose thread is stuck, which no signal can do to it: clients are told, and nothing is left of them."""

import threading
import time

import httpx2 as httpx
import pytest

from tests.tokenspeed.server.conftest import served  # noqa: F401
from tokenspeed.server.admission import Bounds


@pytest.mark.slow
def test_clients_of_a_frozen_engine_get_errors(served, monkeypatch):  # noqa: F811
    goes_on, step = threading.Event(), served.engine.step
    monkeypatch.setattr(served.admission, "bounds", Bounds(timeout_s=2))
    monkeypatch.setattr(served.engine, "step", lambda: goes_on.wait(60) and step())
    begun, answers = time.monotonic(), []
    ask = lambda: answers.append(served.post("/v1/completions", prompt="The", max_tokens=3))
    asked = threading.Thread(target=ask)
    asked.start()
    try:
        while (ready := httpx.get(f"{served.url}/ready")).status_code == 200 and time.monotonic() < begun + 30:
            time.sleep(0.1)
        assert time.monotonic() - begun < 5.5 and ready.status_code == 503
        asked.join(10)
        assert answers[0].status_code == 408, "of a request under way"
        for stream in (False, True):
            refused = served.post("/v1/completions", prompt="The", max_tokens=3, stream=stream)
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
            assert refused.json()["error"]["code"] == "not_ready"
    finally:
        monkeypatch.undo()
        goes_on.set()
        asked.join(60)
    assert served.post("/v1/completions", prompt="The", max_tokens=3).status_code == 200
    assert served.engine.pool.used == served.admission.under_way == 0
