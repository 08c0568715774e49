"""Prompts of requests as token ids, and the room behind them."""

import functools
from typing import Any

from starlette.concurrency import run_in_threadpool

from tokenspeed.messages import one_line
from tokenspeed.server.errors import ApiError
from tokenspeed.server.protocol import Message
from tokenspeed.server.sampling import Room
from tokenspeed.server.service import Service
from tokenspeed.text.errors import TokenizerError

OF_THE_TEMPLATE = {"self", "messages", "tools", "add_generation_prompt"}
"""What a chat's template is told otherwise, or not at all."""
CHARACTERS = 16
"""Of a token, more than it has in most texts."""


async def chat_ids(
    service: Service, messages: list[Message], generation_prompt: bool, variables: dict[str, Any]
) -> list[int]:
    """The token ids of a chat's prompt.

    Raises:
        ApiError: 400: something is no text, or the template refuses it.
    """
    if not messages:
        raise ApiError(400, "messages: expected at least one", param="messages")
    if taken := variables.keys() & OF_THE_TEMPLATE:
        message = f"chat_template_kwargs: expected variables of the template, got {min(taken)}, which is no such"
        raise ApiError(400, message, param="chat_template_kwargs")
    plain = [_plain(one) for one in messages]
    render = functools.partial(service.tokenizer.render_chat, plain, add_generation_prompt=generation_prompt)
    try:
        text = await run_in_threadpool(functools.partial(render, **variables))
    except (TokenizerError, TypeError) as error:
        raise ApiError(400, f"messages: {one_line(error)}", param="messages") from error
    return await encoded(service, text, True, "messages", fits=True)


async def encoded(service: Service, text: str, special: bool, field: str, *, fits: bool) -> list[int]:
    """The token ids of a text.

    Args:
        fits: it is to fit the context. Where the begin of a long text does not by far, the rest is not looked at.

    Raises:
        ApiError: 400: it is no text, or does not fit.
    """
    encode, context = service.tokenizer.encode, service.llm.max_context
    try:
        begin = text[: CHARACTERS * context]
        if fits and len(begin) < len(text) and len(await run_in_threadpool(encode, begin, special)) > 2 * context:
            raise _too_long(f"more than {2 * context}", context, field)
        return await run_in_threadpool(encode, text, special)
    except TokenizerError as error:
        raise ApiError(400, f"{field}: {one_line(error)}", param=field) from error


def _plain(message: Message) -> dict[str, str]:
    found = dict(role=message.role, content=_text(message.content))
    return found | dict(name=message.name) if message.name else found


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        kind = part.get("type")
        if kind != "text" or not isinstance(part.get("text"), str) or part.keys() - {"type", "text"}:
            raise ApiError(400, f"messages: content of type {str(kind)[:40]!r} is not supported", param="messages")
    return "".join(part["text"] for part in content)


def room_behind(service: Service, ids: list[int], field: str) -> Room:
    """What may follow a prompt.

    Raises:
        ApiError: 400: there are none.
    """
    context = service.llm.max_context
    if not ids:
        raise ApiError(400, f"{field}: expected at least one token", param=field)
    if len(ids) >= context:
        raise _too_long(str(len(ids)), context, field)
    return Room(tokens=context - len(ids), context=context)


def _too_long(tokens: str, context: int, field: str) -> ApiError:
    message = f"{field}: {tokens} tokens leave no room in a context of {context}"
    return ApiError(400, message, param=field, code="context_length_exceeded")
