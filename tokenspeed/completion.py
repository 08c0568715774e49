"""What generation gives back: completions, their pieces as they come, and where the time went."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """How likely one token was, drawn or of the prompt.

    Attributes:
        token_id: of the token. logprob: its natural log-probability. rank: its place among all, from 1.
        top: the log-probabilities of the most likely ids, best first.
    """

    token_id: int
    logprob: float
    rank: int
    top: dict[int, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time of a completion went; its three spans do not overlap.

    Attributes:
        compile_s: seconds in which programs were compiled, or read from jax's cache of them, during the call.
        ttft_s: seconds from the call to the first token, its wait for others and the prefill of its prompt included.
        queue_s: of ttft_s, those before its prefill was started.
        decode_s: seconds from there until the host had the sequence's last token, what ran for others included.
        decode_steps: its steps of decode, which ran in `decode_s`: of the first token there is none. A step is one
            token of the sequence, but for the last few: steps may come several at a time, and those behind its end are
            counted too, as they took their time.
    """

    compile_s: float
    ttft_s: float
    decode_s: float
    decode_steps: int
    queue_s: float = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """The rate of this sequence after its first token: its steps by their time; None where it had none."""
        return self.decode_steps / self.decode_s if self.decode_steps else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """What was generated for a prompt.

    Attributes:
        text: without the prompt; None where the folder has no tokenizer.
        token_ids: as drawn, the id that ended the sequence left out.
        finish_reason: 'stop' (an id or a string that ends it) or 'length'.
        stop_reason: the stop string or the id, where that is not one of the model's own.
        logprobs: of each token, where asked for.
        prompt_token_ids: the prompt.
        prompt_logprobs: of each of its tokens, where asked for; None in place of the first's, which follows nothing.
        cached_tokens: of the prompt, those whose keys were in the cache before.
        preemptions: how often it lost its pages to others.
        timings: where the time went.
        samples: all n samples, this one first, where n > 1; else just this one.
    """

    text: str | None
    token_ids: list[int]
    finish_reason: str
    stop_reason: str | int | None
    logprobs: list[TokenLogprob] | None
    prompt_token_ids: list[int]
    timings: Timings
    prompt_logprobs: list[TokenLogprob | None] | None = None
    cached_tokens: int = 0
    preemptions: int = 0
    samples: list["Completion"] = dataclasses.field(default_factory=list, repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta:
    """The next piece of a stream.

    Attributes:
        text: new text, or None where the folder has no tokenizer. token_ids: new ids.
        logprobs: of these, where asked for.
        completion: all of it, in the last piece of a sample; else None.
        sample: which of the prompt's n, from 0.
        prompt_logprobs: of the prompt's tokens, where asked for, in the first piece of sample 0; see `Completion`.
    """

    text: str | None
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    completion: Completion | None = None
    sample: int = 0
    prompt_logprobs: list[TokenLogprob | None] | None = None
