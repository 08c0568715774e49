"""`serve` as a process: how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import httpx2 as httpx
import pytest

from tests.compiling import compiling_alike
from tests.tokenspeed.server.conftest import until_ready

SERVE = ("serve", "--port", "0", "--read-ceiling", "0", "--implementation", "xla")
AS_THE_OTHERS = ("--max-model-len", "128", "--max-num-seqs", "2")
"""What conftest.py's server has: then programs that others have compiled are not compiled again."""


@pytest.fixture
def start():
    """Starts servers, none of which outlives the test, and says where they are."""
    started, environment = [], os.environ | compiling_alike()

    def serve():
        running = subprocess.Popen(
            [sys.executable, "-m", "tokenspeed", *SERVE, *AS_THE_OTHERS], env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        started.append(running)
        assert running.stdout is not None
        ((host, port),) = re.findall(r"^Listening at http://(\S+):(\d+)/v1$", running.stdout.readline())
        return running, (host, int(port))

    yield serve
    for one in started:
        one.kill()
        one.wait()


@pytest.mark.slow
def test_a_signal_lets_streams_end(start):
    running, (host, port) = start()
    until_ready(url := f"http://{host}:{port}")
    body = dict(prompt="The", max_tokens=30, n=8, ignore_eos=True, stream=True)  # one after the other
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        lines = (line for line in response.iter_lines() if line)
        told = [next(lines)]
        running.send_signal(signal.SIGTERM)
        told += lines
    assert told[-1] == "data: [DONE]" and len(told) == 8 * 30 + 1
    ends = [json.loads(line.removeprefix("data: "))["choices"][0]["finish_reason"] for line in told[:-1]]
    assert ends.count("length") == 8 and running.wait(30) == 0


@pytest.mark.slow
def test_a_second_signal_does_not(start):
    running, address = start()
    with socket.create_connection(address) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n")
        connection.sendall(b"content-length: 100\r\nexpect: 100-continue\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100"), "it is under way"
        running.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(1)
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 128 + signal.SIGTERM
