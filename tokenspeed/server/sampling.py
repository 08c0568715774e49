"""What a request says about drawing, as `SamplingParams`."""

from typing import Any

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


def of_chat(request: ChatRequest, most: int, bounds: Bounds) -> SamplingParams:
    """Those of a chat within bounds; `most` tokens, or as many as these allow, where it does not say how many.

    Raises:
        ApiError: 400; it names the field.
    """
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens: expected it or max_completion_tokens, got both", param="max_tokens")
    asked = request.max_completion_tokens if request.max_tokens is None else request.max_tokens
    top = request.top_logprobs
    if top is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs: expected logprobs with it", param="top_logprobs")
    if top is not None and not 0 <= top <= MAX_LOGPROBS:
        raise ApiError(400, f"top_logprobs: expected 0 to {MAX_LOGPROBS}, got {top}", param="top_logprobs")
    logprobs = (top or 0) if request.logprobs else None
    if asked is None:
        tokens = most if bounds.max_tokens is None else min(most, bounds.max_tokens)
    else:
        tokens = bounds.tokens(asked, "max_completion_tokens" if request.max_tokens is None else "max_tokens")
    return _params(request, max_tokens=tokens, logprobs=logprobs)


def of_completion(request: CompletionRequest, bounds: Bounds) -> SamplingParams:
    """Those of a completion within bounds: 16 tokens where it does not say how many, as OpenAI has it; with `echo` and
    `logprobs` those of the prompt too.

    Raises:
        ApiError: 400; it names the field.
    """
    scored = request.logprobs if request.echo else None
    asked = min(16, bounds.max_tokens or 16) if request.max_tokens is None else bounds.tokens(request.max_tokens)
    if asked == 0 and not request.echo:
        raise ApiError(400, "max_tokens: expected 1 or more where nothing is echoed, got 0", param="max_tokens")
    # The engine draws one at least; where none is wanted it is left out of the answer.
    return _params(request, max_tokens=asked or 1, logprobs=request.logprobs, prompt_logprobs=scored)


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
    wrong = [key for key in given if not (key.isascii() and key.isdecimal())]
    if wrong:
        raise ApiError(400, f"logit_bias: expected token ids for keys, got {wrong[0][:40]!r}", param="logit_bias")
    return {int(key): value for key, value in given.items()}
