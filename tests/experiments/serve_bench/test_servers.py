"""Servers that the benchmark starts: waited for, told where they fail, ended with all of their processes."""

import shlex
import signal
import socket
import sys
import textwrap
import time

import httpx2
import psutil
import pytest

from experiments.bench.errors import UsageError
from experiments.serve_bench import __main__ as serve_bench
from experiments.serve_bench.servers import started

STUB = textwrap.dedent("""
    import http.server, subprocess, sys

    class Handler(http.server.BaseHTTPRequestHandler):
        answers = [int(one) for one in sys.argv[2].split()]

        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def do_POST(self):
            status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"the model is another one" if status == 404 else b"{}")

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
""")


def stub(answers):
    """A command, and the address that it will have."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    return shlex.join([sys.executable, "-c", STUB, str(port), answers]), f"http://127.0.0.1:{port}"


def run(tmp_path, commands, urls, ready_s=30):
    return started(commands, urls, model="local", headers={}, ready_s=ready_s, logs=tmp_path / "logs")


def test_servers_are_there_once_all_answer_and_gone_afterwards(tmp_path, capsys):
    (a, at_a), (b, at_b) = stub("503 500 200"), stub("200")
    with run(tmp_path, dict(a=a, b=b), dict(a=at_a, b=at_b)):
        processes = [psutil.Process(int((tmp_path / "logs" / f"{name}.log").read_text().split()[0])) for name in "ab"]
        assert all(httpx2.post(f"{url}/x", content=b"").status_code == 200 for url in (at_a, at_b))
    assert "a answers after" in capsys.readouterr().out
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE], "nor are the processes that they started"
    for url in (at_a, at_b):
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(url)


def test_a_server_that_is_there_already_is_not_measured_for_the_new_one(tmp_path):
    command, url = stub("200")
    already = pytest.raises(UsageError, match=r"a: .* answers already, before its server is started")
    with run(tmp_path, dict(a=command), dict(a=url)), already, run(tmp_path, dict(a=command), dict(a=url)):
        raise AssertionError("it began")


def test_a_server_that_ends_meanwhile_is_told(tmp_path):
    command, url = stub("200")
    with pytest.raises(UsageError, match="a ended with status -9"), run(tmp_path, dict(a=command), dict(a=url)):
        child = psutil.Process(int((tmp_path / "logs" / "a.log").read_text().split()[0]))
        server = child.parent()
        server.kill()
        while server.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


def test_what_ends_the_benchmark_ends_its_servers(tmp_path):
    command, url = stub("200")
    with pytest.raises(KeyboardInterrupt), run(tmp_path, dict(a=command), dict(a=url)):
        child = psutil.Process(int((tmp_path / "logs" / "a.log").read_text().split()[0]))
        signal.raise_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    "command, message",
    [
        (
            shlex.join([sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]),
            "a ended with status 3: no",
        ),
        ("no-such-command --port 1", "commands: a: .*no-such-command"),
    ],
    ids=["it ends", "there is none"],
)
def test_what_does_not_start_is_told(tmp_path, command, message):
    with pytest.raises(UsageError, match=message), run(tmp_path, dict(a=command), dict(a="http://127.0.0.1:9")):
        raise AssertionError("it began")


def test_a_chat_that_is_refused_and_one_that_is_not_answered_in_time(tmp_path):
    command, url = stub("404")
    refused = pytest.raises(UsageError, match="a refuses a chat: 404 the model is another one")
    with refused, run(tmp_path, dict(a=command), dict(a=url)):
        raise AssertionError("it began")
    command, url = stub("503")
    with (
        pytest.raises(UsageError, match="a does not answer within 1 s"),
        run(tmp_path, dict(a=command), dict(a=url), 1),
    ):
        raise AssertionError("it began")


@pytest.mark.parametrize(
    "commands, message",
    [
        (["--commands=b=serve"], "commands: expected NAME=COMMAND, of a, got b=serve"),
        (["--commands=a="], "commands: expected NAME=COMMAND, of a, got a="),
        (["--commands=a=one,a=two"], "commands: two have one name"),
        (["--ready_s=0"], "ready_s: expected more than 0, got 0"),
    ],
)
def test_what_is_no_command_is_refused(commands, message, tmp_path, capsys):
    how = ["--endpoints=a=http://127.0.0.1:9/v1", f"--results={tmp_path / 'serve.jsonl'}", *commands]
    assert serve_bench.main(how) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
