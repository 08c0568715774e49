"""Runs the server: `python -m tokenspeed serve`."""

import socket
from collections.abc import Callable

import uvicorn

from tokenspeed.llm import LLM
from tokenspeed.server import app
from tokenspeed.server.service import Service


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
    except (OSError, OverflowError) as error:
        bound.close()
        raise ValueError(f"--host, --port: cannot listen at {host}:{port}: {error}") from error
    return bound


def server(load: Callable[[], LLM], *, name: str, any_name: bool) -> uvicorn.Server:
    """A server that loads a model once it runs; see `Service`."""
    service = Service(load, name=name, any_name=any_name)
    return uvicorn.Server(uvicorn.Config(app.create(service), log_level="warning", timeout_graceful_shutdown=5))


def serve(load: Callable[[], LLM], *, host: str, port: int, name: str | None) -> None:
    """Serves until it is told to end.

    Args:
        load: the model. host, port: to listen at. name: of the model, or None: any will do.
    """
    with bind(host, port) as bound:
        print(f"Listening at http://{host}:{bound.getsockname()[1]}/v1", flush=True)
        server(load, name=name or "tokenspeed", any_name=name is None).run(sockets=[bound])
