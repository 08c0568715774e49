"""Runs the server: `python -m tokenspeed serve`."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from tokenspeed.llm import LLM
from tokenspeed.messages import one_line
from tokenspeed.server import app
from tokenspeed.server.admission import Bounds
from tokenspeed.server.ceiling import Ceiling
from tokenspeed.server.defaults import BODY_BYTES, DRAIN_S, METRICS_PREFIX
from tokenspeed.server.guard import Guard
from tokenspeed.server.log import HEADER, RequestLog
from tokenspeed.server.metrics import Metrics
from tokenspeed.server.service import Service

NAME = "tokenspeed"
"""Of a model that has no other."""
BACKLOG = 2048
"""Connections that may wait to be taken."""
GRACE_S = 5
"""Seconds for requests to tell their clients that they have failed."""
KEEP_ALIVE_S = 65
"""Of a connection without a request: longer than clients keep one (5 s by default, 60 s behind most proxies), or a
request would meet its closing now and then."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; with port 0 at any free one.

    Raises:
        ValueError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(BACKLOG)  # who comes before the server runs waits for it
    except (OSError, OverflowError) as error:
        bound.close()
        raise ValueError(f"--host, --port: cannot listen at {host}:{port}: {error}") from error
    return bound


class Server(uvicorn.Server):
    """As uvicorn's, but for its end: told to, it lets requests end for `drain_s` seconds, then they fail; a second
    signal stops it at once."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_s: float):
        super().__init__(config)
        self._service, self._drain_s = service, drain_s

    def drain(self) -> None:
        """Takes no more requests, and ends when there are none."""
        self.should_exit = True
        timer = threading.Timer(self._drain_s, self._service.close)
        timer.daemon = True
        timer.start()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def told(number: int, _: Any) -> None:
            if self.should_exit:
                os._exit(128 + number)
            self.drain()

        before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def server(
    load: Callable[[], LLM],
    *,
    name: str | None = None,
    bounds: Bounds | None = None,
    ceiling: Callable[[], Ceiling | None] = lambda: None,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    body_bytes: int = BODY_BYTES,
    metrics_key: bool = False,
    metrics_prefix: str = METRICS_PREFIX,
    drain_s: float = DRAIN_S,
    write: Callable[[str], Any] | None = None,
) -> tuple[Server, Service]:
    """A server that loads a model once it runs, and its service.

    Args:
        load: the model. name: of it, or None: requests may ask for any.
        bounds, ceiling: of requests and of the device, see `Service`. metrics_prefix: see `Metrics`.
        keys, body_bytes, metrics_key: see `Guard`.
        origins: whose pages may read the answers too, '*' for all; a browser lets no others.
        write: takes the lines of the log; None: standard error does.
        drain_s: seconds that requests under way have to end by themselves, once it is told to.
    """
    service = Service(load, name=name or NAME, any_name=name is None, bounds=bounds, ceiling=ceiling)
    application = app.create(service, Metrics(service, metrics_prefix))
    guarded = Guard(application, keys=keys, metrics_key=metrics_key, body_bytes=body_bytes)
    logged = RequestLog(_shared(guarded, origins) if origins else guarded, write)
    grace = int(drain_s) + GRACE_S
    found = Server(
        uvicorn.Config(logged, log_level="warning", timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=grace),
        service,
        drain_s,
    )
    service.when_failed = found.drain
    return found, service


def _shared(guarded: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """With CORS, around the guard: what a browser asks beforehand carries no key."""
    return CORSMiddleware(
        guarded, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=("*",),
        expose_headers=(HEADER, "Retry-After"),
    )  # fmt: skip


def keys_of(file: str | None) -> list[str]:
    """API keys: the lines of a file, or those of TOKENSPEED_API_KEYS with commas between them.

    Raises:
        ValueError: the file cannot be read, or has none.
    """
    if file is None:
        return [key.strip() for key in os.environ.get("TOKENSPEED_API_KEYS", "").split(",") if key.strip()]
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--api-key-file: {one_line(error)}") from error
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise ValueError(f"--api-key-file: expected a key a line in {file}")
    return found


def serve(load: Callable[[], LLM], *, host: str, port: int, revision: str | None = None, **options: Any) -> None:
    """Serves until it is told to end.

    Args:
        load: the model. host, port: to listen at. revision: that the model is pinned to. options: those of `server`.

    Raises:
        ValueError: the address cannot be had. Or what `load` has raised.
    """
    with bind(host, port) as bound:
        pinned = "" if revision is None else f" (revision {revision})"
        print(f"Listening at http://{host}:{bound.getsockname()[1]}/v1{pinned}", flush=True)
        found, service = server(load, **options)
        found.run(sockets=[bound])
    if service.failure is not None:
        raise service.failure
