"""What /openapi.json says of answers: their shapes, which `answers` and `errors` fill."""

from typing import Any, Literal

from pydantic import BaseModel


class Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Any error, in OpenAI's shape."""

    error: Error


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Choice(BaseModel):
    index: int
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class TextChoice(Choice):
    text: str


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None


class ChatChoice(Choice):
    message: ChatMessage


class Answer(BaseModel):
    id: str
    created: int
    model: str
    usage: Usage


class TextCompletion(Answer):
    """The answer of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class ChatCompletion(Answer):
    """The answer of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


ERRORS: dict[int | str, dict[str, Any]] = {"4XX": dict(model=ErrorBody), "5XX": dict(model=ErrorBody)}
"""Of every path."""
METRICS: dict[int | str, dict[str, Any]] = {
    200: dict(description="Prometheus's format.", content={"text/plain": dict(schema=dict(type="string"))})
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: dict(
        description="The whole answer, or with `stream` its events, the last of which is `data: [DONE]`.",
        content={"text/event-stream": dict(schema=dict(type="string"))},
    )
}
"""Beside the model of a whole answer."""
