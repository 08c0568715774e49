"""The server that is fuzzed, how many bodies it gets, and what every answer must be."""

import collections
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import hypothesis
import pytest
from hypothesis import HealthCheck as Health
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from experiments.server_soak.process import Server

LIMIT_S = 20.0
"""Within which every answer must be there: of an idle machine's, a few."""
REFUSED = {400, 401, 404, 405, 408, 413, 415, 429}
WHOLE = {"/v1/completions": Completion, "/v1/chat/completions": ChatCompletion}
PIECE = {"/v1/completions": Completion, "/v1/chat/completions": ChatCompletionChunk}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bodies", type=int, default=5000, help="that all tests of drawn bodies send together")
    parser.addoption("--fuzz-seed", type=int, default=0, help="of what is drawn")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SENT] = collections.Counter()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    sent = config.stash[SENT]
    told = ", ".join(f"{count} of {status}" for status, count in sorted(sent.items()))
    terminalreporter.write_line(f"{sent.total()} answers by status: {told}")


SENT: pytest.StashKey[collections.Counter] = pytest.StashKey()


@dataclasses.dataclass
class Fuzzed:
    """A server that must bear everything.

    Attributes:
        sent: answers so far by their status.
    """

    server: Server
    client: httpx2.Client
    sent: collections.Counter

    def post(self, path: str, body: bytes) -> httpx2.Response:
        """Its answer to a body, checked."""
        begun = time.perf_counter()
        response = self.client.post(path, content=body, headers={"content-type": "application/json"})
        self.check(path, response.status_code, response.content, time.perf_counter() - begun)
        return response

    def check(self, path: str, status: int, content: bytes, seconds: float) -> None:
        """An answer came in time, and is the one of that path or an error in OpenAI's shape."""
        self.sent[status] += 1
        assert seconds < LIMIT_S, f"{seconds:.1f} s"
        if status == 200:
            check_answer(path, content)
            return
        assert status in REFUSED, (status, content[:500])
        check_error(json.loads(content))


def check_error(body: dict[str, Any]) -> None:
    (error,) = body.values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 1000


def check_answer(path: str, content: bytes) -> None:
    """That of a generation is one, whole or in events; of others the schema says what it is."""
    if path not in WHOLE:
        return
    text = content.decode()
    if not text.startswith("data: "):
        whole = json.loads(text)
        assert all(choice["finish_reason"] for choice in whole["choices"])
        WHOLE[path].model_validate(_filled(whole))
        return
    *events, done = text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]" and all(event.startswith("data: ") for event in events)
    for event in events:
        PIECE[path].model_validate(_filled(json.loads(event.removeprefix("data: "))))


def _filled(answer: dict[str, Any]) -> dict[str, Any]:
    """With what OpenAI's types forget may be null: the log-probability of a prompt's first token, the reason of a
    completion that goes on."""
    for choice in answer["choices"]:
        if (found := choice["logprobs"]) and found.get("token_logprobs", [0])[0] is None:
            assert found["top_logprobs"][0] is None
            found["token_logprobs"][0], found["top_logprobs"][0] = 0.0, {}
        if answer["object"] == "text_completion" and choice["finish_reason"] is None:
            choice["finish_reason"] = "length"
    return answer


@pytest.fixture(scope="session")
def fuzzed(tmp_path_factory, pytestconfig) -> Iterator[Fuzzed]:
    """At its end nothing is left of all that was asked."""
    arguments = ["--max-num-seqs=4", "--max-model-len=128", "--max-tokens-cap=3"]
    log = tmp_path_factory.mktemp("fuzz") / "server.log"
    with Server(arguments, log) as server:
        files = server.files()
        with httpx2.Client(base_url=server.url, timeout=2 * LIMIT_S) as client:
            yield Fuzzed(server, client, pytestconfig.stash[SENT])
        assert server.settled() == (0, 0, 0)
        assert server.files_down_to(files + 8) <= files + 8
        assert server.end() == 0
    assert "Traceback" not in log.read_text()


@pytest.fixture
def each(pytestconfig) -> Callable[..., None]:
    """Calls a check with drawn examples: a share of all bodies."""

    def run(strategy: st.SearchStrategy, share: float, check: Callable[[Any], None]) -> None:
        @hypothesis.seed(pytestconfig.getoption("--fuzz-seed"))
        @hypothesis.settings(
            max_examples=max(1, round(share * pytestconfig.getoption("--bodies"))), derandomize=False, deadline=None,
            suppress_health_check=[Health.too_slow, Health.data_too_large, Health.filter_too_much],
            phases=[hypothesis.Phase.generate],
        )  # fmt: skip
        @hypothesis.given(strategy)
        def all_of_them(example: Any) -> None:
            check(example)

        all_of_them()

    return run
