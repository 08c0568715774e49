"""A row of a batch as the host sees it: its tokens, its text, why it ended and when."""

import dataclasses

from tokenspeed.completion import Completion, Delta, Timings, TokenLogprob
from tokenspeed.models.config import ModelConfig
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.sampling.sample import LENGTH, RUNNING, Logprobs
from tokenspeed.text.stream import TextStream
from tokenspeed.text.tokenizer import Tokenizer


class Row:
    """One sample of one prompt, on the host.

    Args:
        number: of its prompt. prompt: token ids. params: how its tokens are drawn.
        sample: which of the prompt's n. seed: of the request, where `params` has none.
        tokenizer: or None. max_context: positions of a sequence. config: of the model.

    Raises:
        ValueError: the params cannot be run with this model; the message names the field.
    """

    def __init__(
        self,
        number: int,
        prompt: list[int],
        params: SamplingParams,
        sample: int,
        seed: int,
        *,
        tokenizer: Tokenizer | None,
        max_context: int,
        config: ModelConfig,
    ):
        params.validate_for(config.vocab_size)
        room = max_context - len(prompt)
        self.number, self.prompt, self.params, self.sample, self.seed = number, prompt, params, sample, seed
        self.max_tokens = room if params.max_tokens is None else min(room, params.max_tokens)
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        scored = params.prompt_logprobs is not None and sample == 0
        self.prompt_logprobs: list[TokenLogprob | None] | None = [None] * len(prompt) if scored else None
        self.reason: str | None = None
        self.stop_reason: str | int | None = None
        self.text = ""
        self.started_s: float | None = None
        self.first_s: float | None = None
        self.cached_tokens = self.preemptions = 0
        self.begun_s = self.last_s = self.compiled_before_s = self.compile_s = 0.0
        self.decode_steps = 0
        self.told = 0, 0
        self.eos_ids = set() if params.ignore_eos else set(config.eos_ids)
        if params.stop and tokenizer is None:
            raise ValueError("stop: expected none, since the folder has no tokenizer (stop_token_ids work)")
        self.stream = None
        if tokenizer is not None:
            self.stream = TextStream(
                tokenizer,
                params.stop,
                include_in_output=params.include_stop_str_in_output,
                skip_special_tokens=params.skip_special_tokens,
            )

    def begin(self, now: float, compiled_s: float) -> None:
        """Its times are from `now` on, until when `compiled_s` seconds had gone into compiling."""
        self.begun_s, self.compiled_before_s = now, compiled_s

    def start(self, now: float, cached_tokens: int) -> None:
        """Its prefill is started behind so many tokens that were found; again where it was preempted."""
        if self.started_s is None:
            self.started_s, self.cached_tokens = now, cached_tokens

    def take(
        self, tokens: list[int], reason: int, now: float, compiled_s: float, logprobs: Logprobs | None, row: int
    ) -> None:
        """Takes what a few steps drew, which arrived `now`.

        Args:
            tokens: of each step, below 0 where it drew none. reason: as `Drawn.reason`.
            compiled_s: as in `begin`. logprobs: of the steps, those of this row at `row`, or None.
        """
        ids = [token for token in tokens if token >= 0]
        ends = reason not in (RUNNING, LENGTH)
        kept = ids[:-1] if ends else ids
        if ends and ids[-1] not in self.eos_ids:
            self.stop_reason = ids[-1]
        stopped_by = None
        if self.stream is not None:
            delta = self.stream.add(kept)
            self.text, kept, stopped_by = self.text + delta.text, kept[: delta.tokens_used], delta.stopped_by
            if reason != RUNNING and stopped_by is None:
                delta = self.stream.finish()
                self.text, stopped_by = self.text + delta.text, delta.stopped_by
        if self.logprobs is not None:
            assert logprobs is not None
            count = self.params.logprobs
            self.logprobs += [_logprob(logprobs, (step, row), token, count) for step, token in enumerate(kept)]
        if self.first_s is None:
            self.first_s = now
        else:
            self.decode_steps += len(tokens)
        self.last_s, self.compile_s = now, compiled_s - self.compiled_before_s
        self.ids += kept
        if stopped_by is not None:
            self.reason, self.stop_reason = "stop", stopped_by
        elif reason != RUNNING:
            self.reason = "length" if reason == LENGTH else "stop"

    def take_prompt(self, found: Logprobs, start: int, count: int) -> None:
        """Takes how likely the tokens that follow `count` of the prompt's are, the first of them at `start`."""
        if self.prompt_logprobs is None:
            return
        for i, place in enumerate(range(start + 1, min(start + count + 1, len(self.prompt)))):
            self.prompt_logprobs[place] = _logprob(found, i, self.prompt[place], self.params.prompt_logprobs)

    def news(self, completion: Completion | None = None) -> Delta | None:
        """What has come since the last call, with the completion where there is one; None where nothing has."""
        text, ids = self.told
        self.told = len(self.text), len(self.ids)
        if completion is None and self.told == (text, ids):
            return None
        return Delta(
            text=None if self.stream is None else self.text[text:],
            token_ids=self.ids[ids:],
            logprobs=None if self.logprobs is None else self.logprobs[ids:],
            completion=completion,
            sample=self.sample,
            prompt_logprobs=None if (text, ids) != (0, 0) else self.prompt_logprobs,
        )

    def completion(self) -> Completion:
        """All of it.

        Raises:
            FloatingPointError: the model's logits were not finite.
        """
        assert self.reason is not None and self.first_s is not None
        if self.reason == "error":
            raise FloatingPointError(f"prompt {self.number}: the model's logits are not finite")
        timings = Timings(
            compile_s=self.compile_s,
            ttft_s=self.first_s - self.begun_s,
            decode_s=self.last_s - self.first_s,
            decode_steps=self.decode_steps,
            queue_s=0.0 if self.started_s is None else self.started_s - self.begun_s,
        )
        whole = Completion(
            text=None if self.stream is None else self.text,
            token_ids=self.ids,
            finish_reason=self.reason,
            stop_reason=self.stop_reason,
            logprobs=self.logprobs,
            prompt_token_ids=self.prompt,
            prompt_logprobs=self.prompt_logprobs,
            cached_tokens=self.cached_tokens,
            preemptions=self.preemptions,
            timings=timings,
        )
        return dataclasses.replace(whole, samples=[whole])


def _logprob(found: Logprobs, at: int | tuple[int, int], token: int, count: int | None) -> TokenLogprob:
    """Of a token, from what was found at a place of its arrays, with the `count` most likely."""
    top = zip(found.top_ids[at][:count].tolist(), found.top[at][:count].tolist(), strict=True)
    return TokenLogprob(token_id=token, logprob=float(found.sampled[at]), rank=int(found.rank[at]), top=dict(top))
