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
        UsageError: one cannot be started, ends, refuses the chat, or does not answer it in time.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as running:
        servers = {name: running.enter_context(_running(name, one, logs)) for name, one in commands.items()}
        body = dict(model=model, messages=[dict(role="user", content="Hello")], max_tokens=1)
        begun = time.monotonic()
        for name, (server, log) in servers.items():
            while not _answers(name, f"{urls[name]}/chat/completions", body, headers):
                if (status := server.poll()) is not None:
                    raise UsageError(f"commands: {name} ended with status {status}: {_last_line(log)}")
                if time.monotonic() > begun + ready_s:
                    raise UsageError(f"commands: {name} does not answer within {ready_s:g} s; see {log}")
                time.sleep(LOOK_S)
            print(f"{name} answers after {time.monotonic() - begun:.1f} s", flush=True)
        yield


@contextlib.contextmanager
def _running(name: str, command: str, logs: Path) -> Iterator[tuple[subprocess.Popen, Path]]:
    log = logs / f"{name}.log"
    with open(log, "wb") as file:
        try:
            server = subprocess.Popen(
                shlex.split(command), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        except OSError as error:
            raise UsageError(f"commands: {name}: {error}") from error
    try:
        yield server, log
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):  # to all of its processes
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(END_S)


def _answers(name: str, url: str, body: dict, headers: dict[str, str]) -> bool:
    try:
        answer = httpx2.post(url, json=body, headers=headers, timeout=60)
    except httpx2.HTTPError:
        return False
    if 400 <= answer.status_code < 500:
        raise UsageError(f"commands: {name} refuses a chat: {answer.status_code} {answer.text[:200]}")
    return answer.status_code == 200


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it printed nothing")
