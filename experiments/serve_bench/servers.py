"""Servers that the benchmark starts and ends itself, so that one command makes a figure."""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2

from experiments.bench.errors import UsageError

LOOK_S = 0.5
END_S = 30.0
"""For a server to end by itself."""


@contextlib.contextmanager
def started(
    commands: Mapping[str, str], urls: Mapping[str, str], *, model: str, headers: dict[str, str], ready_s: float,
    logs: Path,
) -> Iterator[None]:  # fmt: skip
    """Runs servers, all at once, until the context ends; it begins when each has answered a chat of one token.

    Args:
        commands: by endpoint, in words as a shell has them; no shell runs them. urls: by endpoint. model, headers: of
            requests. ready_s: that they may take. logs: a folder for what each prints, by endpoint.

    Raises:
        UsageError: somebody else answers already; or a server cannot be started, ends, also later, refuses the chat, or
            does not answer it in time.
    """
    if not commands:
        yield
        return
    logs.mkdir(parents=True, exist_ok=True)
    body = dict(model=model, messages=[dict(role="user", content="Hello")], max_tokens=1)
    with contextlib.ExitStack() as running:
        running.enter_context(_ended_by_signals())
        for name in commands:
            if _somebody_is_at(urls[name]):
                raise UsageError(f"commands: {name}: {urls[name]} answers already, before its server is started")
        servers = {name: running.enter_context(_running(name, one, logs)) for name, one in commands.items()}
        begun = time.monotonic()
        for name, (server, log) in servers.items():
            while True:
                left = begun + ready_s - time.monotonic()
                answered = _answers(name, f"{urls[name]}/chat/completions", body, headers, max(1.0, left))
                _check_running(name, server, log)
                if answered:
                    break
                if left < 0:
                    raise UsageError(f"commands: {name} does not answer within {ready_s:g} s; see {log}")
                time.sleep(LOOK_S)
            print(f"{name} answers after {time.monotonic() - begun:.1f} s", flush=True)
        yield
        for name, (server, log) in servers.items():
            _check_running(name, server, log)


@contextlib.contextmanager
def _running(name: str, command: str, logs: Path) -> Iterator[tuple[subprocess.Popen, Path]]:
    log = logs / f"{name}.log"
    with contextlib.ExitStack() as ending:
        with open(log, "ab") as file:
            try:
                server = subprocess.Popen(
                    shlex.split(command), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
                )
            except OSError as error:
                raise UsageError(f"commands: {name}: {error}") from error
            ending.callback(_end, server, signal.SIGKILL)
            ending.callback(_end, server, signal.SIGTERM)  # this first
        yield server, log


def _end(server: subprocess.Popen, number: int) -> None:
    """A signal to all of its processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(END_S)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt, as Control-C does: the servers, in sessions of their own, would outlive us."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # as by nohup
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _somebody_is_at(url: str) -> bool:
    try:
        httpx2.get(f"{url}/models", timeout=5)
    except httpx2.HTTPError:
        return False
    return True


def _check_running(name: str, server: subprocess.Popen, log: Path) -> None:
    if (status := server.poll()) is not None:
        raise UsageError(f"commands: {name} ended with status {status}: {_last_line(log)}")


def _answers(name: str, url: str, body: dict, headers: dict[str, str], timeout_s: float) -> bool:
    try:
        answer = httpx2.post(url, json=body, headers=headers, timeout=timeout_s)
    except httpx2.HTTPError:
        return False
    if 400 <= answer.status_code < 500:
        raise UsageError(f"commands: {name} refuses a chat: {answer.status_code} {answer.text[:200]}")
    return answer.status_code == 200


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it printed nothing")
