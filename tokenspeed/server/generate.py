"""What /v1/chat/completions and /v1/completions do with a request: prompts, streams, answers."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from tokenspeed.completion import Completion, Delta, TokenLogprob
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.server import answers, prompts, sampling
from tokenspeed.server.answers import Answer
from tokenspeed.server.errors import ApiError
from tokenspeed.server.log import figures_of
from tokenspeed.server.metrics import Metrics
from tokenspeed.server.protocol import ChatRequest, CompletionRequest
from tokenspeed.server.service import NOT_FINITE, Service, merged

MAX_PROMPTS = 128
"""Of one request."""
MAX_SAMPLES = 1024
"""Of all prompts of one request together."""


class Generation:
    """A request under way: its prompts, each of which has n samples, and its answer.

    Args:
        answer: what its pieces begin with. prompts: token ids. params: of all. request: the body.
        metrics: that it is counted in.

    Attributes:
        figures: what the log says of it, once it has ended.
    """

    def __init__(
        self,
        service: Service,
        answer: Answer,
        prompts: list[list[int]],
        params: SamplingParams,
        request: ChatRequest | CompletionRequest,
        metrics: Metrics,
    ):
        self._begun, self._metrics = time.perf_counter(), metrics
        self.figures: dict[str, Any] = {}
        self._answer, self._prompts, self._params, self._request = answer, prompts, params, request
        self._echo = isinstance(request, CompletionRequest) and bool(request.echo)
        self._nothing = self._echo and request.max_tokens == 0
        self._scores: dict[int, list[TokenLogprob | None]] = {}
        self._timeout_s = service.admission.bounds.timeout_s
        self._streams = [service.stream(prompt, params, request.priority) for prompt in prompts]

    async def whole(self) -> dict[str, Any]:
        """The answer as one body."""
        found: dict[int, Completion] = {}
        async with contextlib.aclosing(self._deltas()) as deltas:
            async for number, delta in deltas:
                if delta.completion is not None:
                    found[self._index(number, delta)] = delta.completion
        samples = [found[i] for i in sorted(found)]
        usage = answers.usage_of(samples)
        if self._nothing:
            usage = answers.usage(usage["prompt_tokens"], 0, usage["prompt_tokens_details"]["cached_tokens"])
        return self._answer.whole([self._choice(i, one) for i, one in enumerate(samples)], usage)

    async def events(self) -> AsyncGenerator[str]:
        """The answer as server-sent events, one for each token, and nothing before the first token is there."""
        options = self._request.stream_options
        told = bool(options and options.include_usage)
        every = told and bool(options and options.continuous_usage_stats)
        offsets: dict[int, int] = {}
        counts: dict[int, int] = {}
        cached: dict[int, int] = {}
        async with contextlib.aclosing(self._deltas()) as deltas:
            async for number, delta in deltas:
                index = self._index(number, delta)
                for text, logprobs, completion in answers.events_of(delta):
                    counts[index] = counts.get(index, 0) + (not self._nothing)
                    choice = self._piece(index, number, text, logprobs, completion, offsets.get(index))
                    offsets[index] = max(offsets.get(index, 0), _end(choice))
                    usage = answers.usage(len(self._prompts[number]), counts[index]) if every else None
                    yield self._answer.event([choice], usage)
                if delta.completion is not None and delta.sample == 0:
                    cached[number] = delta.completion.cached_tokens
        if told:
            prompt = sum(len(prompt) for prompt in self._prompts)
            yield self._answer.event([], answers.usage(prompt, sum(counts.values()), sum(cached.values())))
        yield answers.DONE

    def failed(self, error: ApiError) -> str:
        """The end of a stream whose status has been sent."""
        return f"data: {json.dumps(error.body)}\n\n{answers.DONE}"

    async def _deltas(self) -> AsyncGenerator[tuple[int, Delta]]:
        """Those of all prompts, counted; where prompts are scored none of a prompt before its scores."""
        held: dict[int, list[Delta]] = {}
        scored = self._params.prompt_logprobs is not None
        last: dict[int, float] = {}
        samples: dict[int, Completion] = {}
        try:
            async with contextlib.aclosing(merged(self._streams)) as deltas:
                async for number, delta in self._in_time(deltas):
                    now, index = time.perf_counter(), self._index(number, delta)
                    if index not in last:
                        self._metrics.first_token(now - self._begun)
                    elif delta.token_ids:
                        self._metrics.next_token(now - last[index], len(delta.token_ids))
                    last[index] = now
                    if delta.completion is not None:
                        samples[index] = delta.completion
                    if delta.prompt_logprobs is not None:
                        self._scores[number] = delta.prompt_logprobs
                    held.setdefault(number, []).append(delta)
                    if not scored or number in self._scores:
                        for one in held.pop(number):
                            yield number, one
        except ApiError as error:
            if error.code == NOT_FINITE:
                self._metrics.corrupted()
            raise
        all_of_them = [samples[i] for i in sorted(samples)]
        self._metrics.ended(all_of_them, time.perf_counter() - self._begun)
        self.figures |= figures_of(all_of_them)

    async def _in_time(self, deltas: AsyncGenerator[tuple[int, Delta]]) -> AsyncGenerator[tuple[int, Delta]]:
        """
        Raises:
            ApiError: 408: they take too long.
        """
        if self._timeout_s is None:
            async for found in deltas:
                yield found
            return
        end = self._begun + self._timeout_s
        while True:
            try:
                yield await asyncio.wait_for(anext(deltas), max(0.0, end - time.perf_counter()))
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                message = f"the request took longer than the {self._timeout_s:g} s that it may"
                raise ApiError(408, message, code="timeout") from error

    def _index(self, number: int, delta: Delta) -> int:
        return number * self._params.n + delta.sample

    def _choice(self, index: int, one: Completion) -> dict[str, Any]:
        reason, answer = one.finish_reason, self._answer
        if answer.chat:
            found = None if one.logprobs is None else answer.chat_logprobs(one.logprobs)
            message = dict(role="assistant", content=one.text, refusal=None)
            return dict(index=index, message=message, logprobs=found, finish_reason=reason)
        number = index // self._params.n
        text, found = self._told(number, one.text or "", one.token_ids, one.logprobs, None)
        return dict(index=index, text=text, logprobs=found, finish_reason="length" if self._nothing else reason)

    def _piece(
        self,
        index: int,
        number: int,
        text: str,
        logprobs: list[TokenLogprob],
        completion: Completion | None,
        offset: int | None,
    ) -> dict[str, Any]:
        """The choice in an event; `offset` as in `_told`."""
        reason = None if completion is None else completion.finish_reason
        wanted = None if self._params.logprobs is None else logprobs
        if self._answer.chat:
            delta = dict(role="assistant", content=text) if offset is None else dict(content=text)
            found = self._answer.chat_logprobs(wanted) if wanted else None
            return dict(index=index, delta=delta, logprobs=found, finish_reason=reason)
        text, found = self._told(number, text, [one.token_id for one in logprobs], wanted, offset)
        if found is not None and not found["tokens"] and not self._nothing:
            found = None
        return dict(index=index, text=text, logprobs=found, finish_reason="length" if self._nothing else reason)

    def _told(
        self, number: int, text: str, ids: list[int], logprobs: list[TokenLogprob] | None, offset: int | None
    ) -> tuple[str, dict[str, Any] | None]:
        """The text of a completion, or of a piece, and its log-probabilities.

        Args:
            number: of the prompt. offset: where the piece begins, None of the first, which has what is echoed.
        """
        told: list[TokenLogprob | None] | None = None if logprobs is None else list(logprobs)
        if self._nothing:
            text, ids, told = "", [], None if told is None else []
        if self._echo and offset is None:
            prompt = self._prompts[number]
            text, ids = self._text_of(prompt) + text, prompt + ids
            told = None if told is None else self._scores[number] + told
        return text, None if told is None else self._answer.text_logprobs(told, ids, offset or 0)

    def _text_of(self, ids: list[int]) -> str:
        return self._answer.tokenizer.decode(ids, skip_special_tokens=False)


def _end(choice: dict[str, Any]) -> int:
    """Where the text of the tokens in a choice ends, as its offsets have it; 0 without any."""
    found = choice["logprobs"]
    if not found or not found.get("tokens"):
        return 0
    return found["text_offset"][-1] + len(found["tokens"][-1])


async def chat(service: Service, metrics: Metrics, request: ChatRequest) -> Generation:
    """
    Raises:
        ApiError: it cannot be run.
    """
    name, tokenizer = service.check_name(request.model), service.tokenizer
    variables = dict(request.chat_template_kwargs or {})
    ids = await prompts.chat_ids(service, request.messages, request.add_generation_prompt is not False, variables)
    room = prompts.room_behind(service, ids, "messages")
    params = sampling.of_chat(request, room, service.admission.bounds)
    answer = Answer(id=service.new_id("chatcmpl"), model=name, tokenizer=tokenizer, chat=True)
    return Generation(service, answer, [ids], params, request, metrics)


async def completion(service: Service, metrics: Metrics, request: CompletionRequest) -> Generation:
    """
    Raises:
        ApiError: it cannot be run.
    """
    name, tokenizer = service.check_name(request.model), service.tokenizer
    prompt: Any = request.prompt
    several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    each: list[str | list[int]] = prompt if several else [prompt]
    if len(each) > MAX_PROMPTS:
        raise ApiError(400, f"prompt: expected at most {MAX_PROMPTS}, got {len(each)}", param="prompt")
    if len(each) * (n := request.n or 1) > MAX_SAMPLES:
        message = f"prompt, n: expected at most {MAX_SAMPLES} samples together, got {len(each)} prompts with n = {n}"
        raise ApiError(400, message, param="n")
    special = request.add_special_tokens is not False
    ids = [
        one if isinstance(one, list) else await prompts.encoded(service, one, special, "prompt", fits=True)
        for one in each
    ]
    room = min(prompts.room_behind(service, one, "prompt") for one in ids)
    params = sampling.of_completion(request, room, service.admission.bounds)
    answer = Answer(id=service.new_id("cmpl"), model=name, tokenizer=tokenizer, chat=False)
    return Generation(service, answer, ids, params, request, metrics)
