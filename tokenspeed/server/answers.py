"""Answers of the API: whole ones, and the events of streams."""

import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

from tokenspeed.completion import Completion, Delta, TokenLogprob
from tokenspeed.text.tokenizer import Tokenizer

DONE = "data: [DONE]\n\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What all pieces of an answer begin with.

    Attributes:
        id: of the request. model: the name that was asked for. created: seconds since the epoch.
        tokenizer: of the model. chat: of a chat, else of a completion.
    """

    id: str
    model: str
    tokenizer: Tokenizer
    chat: bool
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def lead(self, *, streamed: bool) -> dict[str, Any]:
        if self.chat:
            kind = "chat.completion.chunk" if streamed else "chat.completion"
        else:
            kind = "text_completion"
        return dict(id=self.id, object=kind, created=self.created, model=self.model)

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return self.lead(streamed=False) | dict(choices=choices, usage=usage)

    def event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> str:
        """A line of server-sent events and the empty one that ends it."""
        found = self.lead(streamed=True) | dict(choices=choices) | ({} if usage is None else dict(usage=usage))
        return f"data: {json.dumps(found, ensure_ascii=False, separators=(',', ':'))}\n\n"

    def chat_logprobs(self, found: list[TokenLogprob]) -> dict[str, Any]:
        def told(id: int, logprob: float) -> dict[str, Any]:
            text = self.tokenizer.decode([id], skip_special_tokens=False)
            return dict(token=text, logprob=_finite(logprob), bytes=list(text.encode()))

        return dict(
            content=[
                told(one.token_id, one.logprob) | dict(top_logprobs=[told(id, value) for id, value in one.top.items()])
                for one in found
            ],
            refusal=None,
        )

    def text_logprobs(self, found: list[TokenLogprob | None], ids: list[int], begin: int = 0) -> dict[str, Any]:
        """In the form of /v1/completions; offsets are those of the tokens' own texts, the first of which is `begin`."""
        texts = [self.tokenizer.decode([id], skip_special_tokens=False) for id in ids]
        offsets = [begin]
        for text in texts:
            offsets.append(offsets[-1] + len(text))
        return dict(
            tokens=texts,
            token_logprobs=[None if one is None else _finite(one.logprob) for one in found],
            top_logprobs=[None if one is None else self._top(one) for one in found],
            text_offset=offsets[:-1],
        )

    def _top(self, one: TokenLogprob) -> dict[str, float]:
        """The most likely, and the token itself, by their texts; of two with one text the likelier."""
        found: dict[str, float] = {}
        for id, value in [*one.top.items(), (one.token_id, one.logprob)]:
            found.setdefault(self.tokenizer.decode([id], skip_special_tokens=False), _finite(value))
        return found


def ended_by_id(completion: Completion) -> bool:
    """Whether its last token was one that ends it, which its ids leave out."""
    return completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str)


def drawn(completion: Completion) -> int:
    """Tokens that were generated, the id that ended it included."""
    return len(completion.token_ids) + ended_by_id(completion)


def usage_of(samples: list[Completion]) -> dict[str, Any]:
    """Of the samples of one prompt, or of several."""
    prompts = {id(one.prompt_token_ids): one for one in reversed(samples)}.values()  # the first of each
    return usage(
        sum(len(one.prompt_token_ids) for one in prompts),
        sum(drawn(one) for one in samples),
        sum(one.cached_tokens for one in prompts),
    )


def usage(prompt: int, completion: int, cached: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = dict(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
    return found if cached is None else found | dict(prompt_tokens_details=dict(cached_tokens=cached))


def events_of(delta: Delta) -> Iterator[tuple[str, list[TokenLogprob], Completion | None]]:
    """A delta as one event for each token: (text, log-probabilities, the completion in the last of all).

    Text may belong to several tokens, and is in the event of the last of them.
    """
    whole = delta.completion
    tokens = len(delta.token_ids) + (whole is not None and ended_by_id(whole))
    for i in range(max(1, tokens)):
        last = i == max(1, tokens) - 1
        yield (delta.text or "") if last else "", (delta.logprobs or [])[i : i + 1], whole if last else None


def _finite(value: float) -> float:
    """JSON has no infinities."""
    return max(value, -9999.0)
