"""Requests of the API, as their bodies are: OpenAI's fields, and those that vLLM adds to them.

A field that is not known is refused by name. So is one that is known and not supported, where its value would change
anything. Ranges are `SamplingParams`'s to check.
"""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from tokenspeed.messages import shown


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"expected valid Unicode, got {text!a:.80}") from None
    return text


Number = StrictFloat
"""An integer too."""
Text = Annotated[StrictStr, AfterValidator(_unicode)]
"""JSON may have lone surrogates, of which an answer could say nothing."""
FIRST = FailFast()
"""Of a list: only the first wrong item is told, since to say of a million what is wrong takes seconds."""
type TokenIds = Annotated[list[StrictInt], FIRST]
type Texts = Annotated[list[Text], FIRST]
type Prompts = Annotated[list[TokenIds], FIRST]
type Parts = Annotated[list[dict[str, Any]], FIRST]
type Messages = Annotated[list[Message], FIRST]


def each(*types: type, what: str) -> AfterValidator:
    """Of a mapping whose values have one of the types; as with lists, the first wrong one is told."""

    def check(found: dict[str, Any]) -> dict[str, Any]:
        wrong = next((key for key, value in found.items() if type(value) not in types), None)
        if wrong is not None:
            raise ValueError(f"expected {what} for each key, got {shown(found[wrong])} for {shown(wrong)}")
        return found

    return AfterValidator(check)


def unsupported(*same: Any) -> BeforeValidator:
    """Of a field that may say only what changes nothing: null, or one of these values."""

    def check(value: Any) -> Any:
        if value is not None and not any(type(value) is type(one) and value == one for one in same):
            raise ValueError("is not supported")
        return value

    return BeforeValidator(check)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, values: Any) -> Any:
        """Of fields that are not known the first is left to be refused, however many there are."""
        if not isinstance(values, dict):
            return values
        others = set([name for name in values if name not in cls.model_fields][1:])
        return {name: value for name, value in values.items() if name not in others} if others else values


class StreamOptions(_Body):
    """What a stream tells of usage: in an event at its end, or in every event."""

    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = False
    include_obfuscation: Annotated[Any, unsupported(False)] = None


class Request(_Body):
    """The fields that both kinds of requests have."""

    model: Text | None = Field(None, description="the served model; any name, or none, where one has no other")
    n: StrictInt | None = Field(None, description="samples to draw")
    stream: StrictBool | None = Field(None, description="send tokens as they come")
    stream_options: StreamOptions | None = None
    stop: Text | Texts | None = Field(None, description="strings that end the text")
    seed: StrictInt | None = Field(None, description="the same one draws the same tokens")
    temperature: Number | None = None
    top_p: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: Annotated[dict[str, Any], each(int, float, what="a number")] | None = Field(
        None, description="token id to what is added to its logit"
    )
    max_tokens: StrictInt | None = Field(None, description="to be generated at most")

    # Beyond OpenAI's.
    top_k: StrictInt | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    min_tokens: StrictInt | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: StrictBool | None = None
    skip_special_tokens: StrictBool | None = None
    include_stop_str_in_output: StrictBool | None = None
    allowed_token_ids: TokenIds | None = None
    priority: StrictInt = Field(0, description="lower runs first")

    # Notes of the client, which change nothing here.
    user: Text | None = None


class Message(_Body):
    """A message of a chat, whose content is text."""

    role: Text
    content: Text | Parts
    name: Text | None = None
    tool_calls: Annotated[Any, unsupported([])] = None
    function_call: Annotated[Any, unsupported()] = None
    refusal: Annotated[Any, unsupported()] = None
    audio: Annotated[Any, unsupported()] = None


class ChatRequest(Request):
    """The body of /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: StrictInt | None = Field(None, description="the newer name of max_tokens")
    logprobs: StrictBool | None = Field(None, description="log-probabilities of the tokens")
    top_logprobs: StrictInt | None = Field(None, description="and those of so many of the most likely")
    add_generation_prompt: StrictBool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    tools: Annotated[Any, unsupported([])] = None
    tool_choice: Annotated[Any, unsupported("none", "auto")] = None
    parallel_tool_calls: Annotated[Any, unsupported(True, False)] = None
    functions: Annotated[Any, unsupported([])] = None
    function_call: Annotated[Any, unsupported("none")] = None
    response_format: Annotated[Any, unsupported(dict(type="text"))] = None
    modalities: Annotated[Any, unsupported(["text"])] = None
    audio: Annotated[Any, unsupported()] = None
    prediction: Annotated[Any, unsupported()] = None
    reasoning_effort: Annotated[Any, unsupported()] = None
    verbosity: Annotated[Any, unsupported()] = None
    web_search_options: Annotated[Any, unsupported()] = None
    store: Annotated[Any, unsupported(False)] = None
    metadata: Annotated[dict[str, Any], each(str, what="a string")] | None = None
    service_tier: Annotated[Any, unsupported("auto", "default")] = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None


class CompletionRequest(Request):
    """The body of /v1/completions."""

    prompt: Text | TokenIds | Texts | Prompts
    echo: StrictBool | None = Field(None, description="the prompt comes back in front of the text")
    logprobs: StrictInt | None = Field(None, description="log-probabilities, of so many of the most likely too")
    add_special_tokens: StrictBool | None = None

    best_of: Annotated[Any, unsupported(1)] = None
    suffix: Annotated[Any, unsupported("")] = None


class TokenizeRequest(_Body):
    """The body of /tokenize: a text, or a chat."""

    model: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: StrictBool = True
    add_generation_prompt: StrictBool = True


class DetokenizeRequest(_Body):
    """The body of /detokenize."""

    model: Text | None = None
    tokens: TokenIds
