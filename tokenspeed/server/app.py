"""The application: paths of the API over a service, and errors in OpenAI's shape."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable
from pathlib import Path
from typing import Any

import jax
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from tokenspeed.messages import one_line, shown
from tokenspeed.server import generate, prompts, schema
from tokenspeed.server.errors import ApiError
from tokenspeed.server.generate import Generation
from tokenspeed.server.log import CLOSED
from tokenspeed.server.metrics import Metrics
from tokenspeed.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from tokenspeed.server.service import Service
from tokenspeed.text.errors import TokenizerError
from tokenspeed.version import VERSION

LOG = logging.getLogger("uvicorn.error")
PAGE = Path(__file__).with_name("page.html")
POLICY = "default-src 'none'; connect-src 'self'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
"""Nothing from outside; the page's icon is an empty one of its own, so that nobody asks for another."""
KINDS = ("str", "int", "float", "bool")
LONGEST = 64
"""Of a field's name in a message."""


def create(service: Service, metrics: Metrics) -> FastAPI:
    """The application of a service, which it starts and closes."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(title="TokenSpeed-JAX", version=VERSION, lifespan=lifespan, responses=schema.ERRORS)
    begun = int(time.time())

    def told(error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(ApiError)
    async def of_ours(request: Request, error: ApiError) -> Response:
        return told(traced(error, request))

    @app.exception_handler(RequestValidationError)
    async def of_body(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            return told(ApiError(415, f"content-type: expected application/json, got {kind[:100]!r}"))
        return told(invalid(error))

    @app.exception_handler(HTTPException)
    async def of_path(_: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.__cause__ is not None:  # what no parser of JSON takes, and nobody else says
            message = f"body: expected JSON in UTF-8: {one_line(error.__cause__)}"
        return told(ApiError(error.status_code, message, headers=error.headers))

    @app.exception_handler(Exception)
    async def of_a_bug(request: Request, error: Exception) -> Response:
        return told(traced(of_bug(error), request))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY})

    @app.get("/health", response_class=Response)
    async def health() -> Response:
        """The process lives."""
        return Response()

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """The model serves."""
        assert service.llm is not None
        return dict(status="ready")

    @app.get("/metrics", response_class=Response, responses=schema.METRICS)
    async def measured() -> Response:
        """In Prometheus's format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return dict(version=VERSION, jax=jax.__version__)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return dict(object="list", data=[model()])

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise service.no_model(name)
        return model()

    def model() -> dict[str, Any]:
        found = dict(id=service.name, object="model", created=begun, owned_by="tokenspeed")
        return found if service.why_not_ready else found | dict(max_model_len=service.llm.max_context)

    @app.post("/v1/chat/completions", response_model=schema.ChatCompletion, responses=schema.STREAMED)
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await answered(await generate.chat(service, metrics, body), bool(body.stream), request)

    @app.post("/v1/completions", response_model=schema.TextCompletion, responses=schema.STREAMED)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await answered(await generate.completion(service, metrics, body), bool(body.stream), request)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Token ids of a text, or of a chat's prompt."""
        service.check_name(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "prompt, messages: expected one of them", param="prompt")
        if body.messages is not None:
            ids = await prompts.chat_ids(service, body.messages, body.add_generation_prompt, {})
        else:
            assert body.prompt is not None
            ids = await prompts.encoded(service, body.prompt, body.add_special_tokens, "prompt", fits=False)
        return dict(count=len(ids), max_model_len=service.llm.max_context, tokens=ids)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        """The text of token ids."""
        service.check_name(body.model)
        try:
            return dict(prompt=service.tokenizer.decode(body.tokens, skip_special_tokens=False))
        except TokenizerError as error:
            raise ApiError(400, f"tokens: {one_line(error)}", param="tokens") from error

    return app


async def answered(generation: Generation, streamed: bool, request: Request) -> Response:
    """The answer to a request. Its first token is waited for, so that an error still has a status of its own."""
    generation.figures = request.state.figures
    if not streamed:
        return JSONResponse(await _unless_gone(generation.whole(), request))
    events = generation.events()
    first = await _unless_gone(anext(events), request)

    async def all_of_them() -> AsyncGenerator[str]:
        async with contextlib.aclosing(events):
            yield first
            try:
                async for event in events:
                    yield event
            except ApiError as error:  # its status has been sent
                yield generation.failed(traced(error, request))
            except Exception as error:
                LOG.exception("in a stream, request %s", request.state.request_id)
                yield generation.failed(traced(of_bug(error), request))

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(all_of_them(), media_type="text/event-stream", headers=headers)


async def _unless_gone(work: Awaitable[Any], request: Request) -> Any:
    """What comes of it; given up where the client leaves."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        gone.result()  # an error of it is one of the request
        raise ApiError(CLOSED, "the client has left")
    finally:
        task.cancel()
        gone.cancel()  # before a stream asks for the same message
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Ends where the client leaves; of a request whose body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def of_bug(error: Exception) -> ApiError:
    """What a client is told of an error of ours."""
    return ApiError(500, f"internal error: {type(error).__name__}")


def traced(error: ApiError, request: Request) -> ApiError:
    """With the request's id where it is not the client's, so that it is found in the log."""
    if error.status == 500:
        error.message += f" (request {request.state.request_id})"
    return error


def is_kind(part: str) -> bool:
    """Whether a part of a place is no field, but which of several types did not fit."""
    return part in KINDS or (part.endswith("]") and "[" in part)


def invalid(error: RequestValidationError) -> ApiError:
    """In one line, that names the first field that is wrong."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"][1:]]
    odd = lambda part: len(part) > LONGEST or not part.isprintable()
    field = ".".join(shown(part) if odd(part) else part for part in place if not is_kind(part)) or "body"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "is not known"
    return ApiError(400, f"{field}: {' '.join(message.split())}", param=field.split(".")[0])
