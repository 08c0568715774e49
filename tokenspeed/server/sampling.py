"""What a request says about drawing, as `SamplingParams`."""

from typing import Any, NamedTuple

from tokenspeed.arguments import MAX_INT, integer
from tokenspeed.sampling.params import MAX_LOGPROBS, SamplingParams
from tokenspeed.server.admission import Bounds
from tokenspeed.server.errors import ApiError, refused
from tokenspeed.server.protocol import ChatRequest, CompletionRequest, Request

SAME = (
    "n", "stop", "seed", "temperature", "top_p", "presence_penalty", "frequency_penalty", "top_k", "min_p",
    "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos", "skip_special_tokens",
    "include_stop_str_in_output", "allowed_token_ids",
)  # fmt: skip
"""Fields that mean the same here and there."""
LONGEST_ID = 10
"""Digits of a token id."""


class Room(NamedTuple):
    """Tokens that may follow a prompt in a context of so many."""

    tokens: int
    context: int


def of_chat(request: ChatRequest, room: Room, bounds: Bounds) -> SamplingParams:
    """Those of a chat within bounds; as many tokens as there is room for, where it does not say how many.

    Raises:
        ApiError: 400; it names the field.
    """
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens: expected it or max_completion_tokens, got both", param="max_tokens")
    newer = request.max_tokens is None
    asked = request.max_completion_tokens if newer else request.max_tokens
    top = request.top_logprobs
    if top is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs: expected logprobs with it", param="top_logprobs")
    if top is not None and not 0 <= top <= MAX_LOGPROBS:
        raise ApiError(400, f"top_logprobs: expected 0 to {MAX_LOGPROBS}, got {top}", param="top_logprobs")
    logprobs = (top or 0) if request.logprobs else None
    if asked is None:
        tokens = min(room.tokens, bounds.max_tokens or room.tokens)
    else:
        tokens = _tokens(asked, "max_completion_tokens" if newer else "max_tokens", 1, room, bounds)
    return _params(request, max_tokens=tokens, logprobs=logprobs)


def of_completion(request: CompletionRequest, room: Room, bounds: Bounds) -> SamplingParams:
    """Those of a completion within bounds: 16 tokens where it does not say how many, as OpenAI has it, or as many as
    there is room for; with `echo` and `logprobs` those of the prompt too.

    Args:
        room: behind the longest of its prompts.

    Raises:
        ApiError: 400; it names the field.
    """
    scored = request.logprobs if request.echo else None
    if request.max_tokens is None:
        asked = min(16, bounds.max_tokens or 16)
    elif request.max_tokens == 0 and not request.echo:
        raise ApiError(400, "max_tokens: expected 1 or more where nothing is echoed, got 0", param="max_tokens")
    else:
        asked = _tokens(request.max_tokens, "max_tokens", 0, room, bounds)
    # The engine draws one at least; where none is wanted it is left out of the answer.
    return _params(request, max_tokens=asked or 1, logprobs=request.logprobs, prompt_logprobs=scored)


def _tokens(asked: int, field: str, low: int, room: Room, bounds: Bounds) -> int:
    """That a request which asks for so many gets: those that a cap leaves, and never fewer since there is no room."""
    try:
        tokens = bounds.tokens(integer(field, asked, low, MAX_INT), field)
    except ValueError as error:
        raise refused(error) from error
    if tokens > room.tokens:
        prompt = room.context - room.tokens
        why = f"what the {prompt} tokens of the prompt leave in a context of {room.context}"
        message = f"{field}: expected at most {room.tokens}, {why}, got {asked}"
        raise ApiError(400, message, param=field, code="context_length_exceeded")
    return tokens


def _params(request: Request, **others: Any) -> SamplingParams:
    given = {name: value for name in SAME if (value := getattr(request, name)) is not None}
    try:
        return SamplingParams(**given, logit_bias=_bias(request.logit_bias), **others)
    except (ValueError, TypeError) as error:
        raise refused(error) from error


def _bias(given: dict[str, Any] | None) -> dict[int, float] | None:
    """JSON has no integers for keys."""
    if given is None:
        return None
    wrong = [key for key in given if not (key.isascii() and key.isdecimal() and len(key) <= LONGEST_ID)]
    if wrong:
        raise ApiError(400, f"logit_bias: expected token ids for keys, got {wrong[0][:40]!r}", param="logit_bias")
    return {int(key): value for key, value in given.items()}
