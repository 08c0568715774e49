"""SamplingParams: what a request may say about how its tokens are drawn, checked when it is said."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from tokenspeed.arguments import MAX_INT, boolean, integer, integers, is_sequence, number
from tokenspeed.messages import shown

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_SAMPLES = 128
MAX_BIAS = 100.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are drawn; the names, defaults and meanings are vLLM's.

    Args:
        n: how many samples to draw of the prompt, 1 to 128; 1 where the request is greedy.
        temperature: logits are divided by it; 0 is greedy: the most likely token, of equals the lowest id.
        top_p: in (0, 1]: keep the fewest most likely tokens whose mass reaches it (Holtzman et al. 2020); 1 is off.
        top_k: keep this many of the most likely tokens (Fan et al. 2018); 0 and -1 are off, and are stored as 0.
        min_p: in [0, 1]: keep the tokens at least this times as likely as the likeliest (Nguyen et al. 2024).
        max_tokens: tokens to generate at most, 1 or more; None: up to the end of the context.
        min_tokens: no id that ends the sequence is drawn before there are this many.
        stop: strings that end the text, at most 16; one string, a sequence or None, stored as a tuple.
        stop_token_ids: ids that end the sequence, besides the model's own, stored as a tuple.
        ignore_eos: the model's own end-of-sequence ids do not end the sequence.
        seed: 0 to 2**64 - 1: the same seed draws the same tokens; None: one is chosen for the request.
        logprobs: how many of the most likely tokens come back with their log-probabilities, 0 to 20; 0 gives the
            sampled token's alone, None gives none.
        prompt_logprobs: the same of the prompt's tokens, each given those before it; the prompt is then computed anew.
        presence_penalty: -2 to 2, subtracted from the logits of tokens that were generated before.
        frequency_penalty: -2 to 2, subtracted once for each time that the token was generated before.
        repetition_penalty: 0.01 to 100, of tokens in the prompt or generated: positive logits are divided by it and
            negative ones multiplied (Keskar et al. 2019, CTRL); 1 is off.
        logit_bias: token id -> what is added to its logit, -100 to 100; None or empty for none. It is copied.
        allowed_token_ids: the only ids that may be drawn, at least one; None allows all. Stored as a tuple.
        skip_special_tokens: leave special tokens out of the text.
        include_stop_str_in_output: keep the stop string at the end of the text.

    Raises:
        ValueError, TypeError: a value is wrong. One line: the field, what is allowed, what was given.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = dataclasses.field(default=None, hash=False)
    allowed_token_ids: Sequence[int] | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self):
        set_ = lambda name, value: object.__setattr__(self, name, value)
        for name, low, high in (
            ("n", 1, MAX_SAMPLES),
            ("top_k", -1, MAX_INT),
            ("min_tokens", 0, MAX_INT),
        ):
            set_(name, integer(name, getattr(self, name), low, high))
        for name, low, high in (
            ("max_tokens", 1, MAX_INT),
            ("seed", 0, 2**64 - 1),
            ("logprobs", 0, MAX_LOGPROBS),
            ("prompt_logprobs", 0, MAX_LOGPROBS),
        ):
            set_(name, _optional(name, getattr(self, name), low, high))
        for name, low, high in (
            ("temperature", 0, math.inf),
            ("top_p", 0, 1),
            ("min_p", 0, 1),
            ("presence_penalty", -2, 2),
            ("frequency_penalty", -2, 2),
            ("repetition_penalty", 0.01, 100),
        ):
            set_(name, number(name, getattr(self, name), low, high, above=name == "top_p"))
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            boolean(name, getattr(self, name))
        set_("top_k", max(self.top_k, 0))
        set_("stop", _stops(self.stop))
        set_("stop_token_ids", _ids("stop_token_ids", () if self.stop_token_ids is None else self.stop_token_ids))
        set_("logit_bias", _bias(self.logit_bias))
        if self.allowed_token_ids is not None:
            set_("allowed_token_ids", _ids("allowed_token_ids", self.allowed_token_ids))
            if not self.allowed_token_ids:
                raise ValueError("allowed_token_ids: expected at least one token id, or None to allow all, got none")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens: expected at most max_tokens, {self.max_tokens}, got {self.min_tokens}")
        if self.greedy and self.n > 1:
            raise ValueError(f"n: expected 1 where temperature is 0, since all samples are the same, got {self.n}")

    @property
    def greedy(self) -> bool:
        """The most likely token is taken, and nothing is drawn."""
        return self.temperature == 0

    @property
    def needs_penalties(self) -> bool:
        """The logits depend on which tokens came before."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def needs_bias(self) -> bool:
        """Some token's logit is changed or forbidden for the whole request."""
        return self.logit_bias is not None or self.allowed_token_ids is not None

    def validate_for(self, vocab_size: int) -> None:
        """Raises ValueError where a token id is not in a vocabulary of this size; the message names the field."""
        for name in ("stop_token_ids", "logit_bias", "allowed_token_ids"):
            worst = max(getattr(self, name) or (), default=-1)
            if worst >= vocab_size:
                raise ValueError(f"{name}: expected token ids below {vocab_size}, the vocabulary's size, got {worst}")


def _optional(name: str, value, low: int, high: int) -> int | None:
    return None if value is None else integer(name, value, low, high, of=" or None")


def _ids(name: str, values) -> tuple[int, ...]:
    if isinstance(values, set | frozenset):
        values = list(values)  # their order does not matter
    if not is_sequence(values):
        raise TypeError(f"{name}: expected a sequence of token ids or None, got {shown(values)}")
    return tuple(integers(name, values, 0, MAX_INT))


def _stops(stop) -> tuple[str, ...]:
    if stop is None:
        return ()
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, Iterable) or isinstance(stops, bytes | bytearray | Mapping):
        raise TypeError(f"stop: expected a string, a sequence of strings or None, got {shown(stop)}")
    stops = tuple(stops)
    if len(stops) > MAX_STOPS:
        raise ValueError(f"stop: expected at most {MAX_STOPS} strings, got {len(stops)}")
    for string in stops:
        if not isinstance(string, str):
            raise TypeError(f"stop: expected a string, a sequence of strings or None, got {shown(string)} in it")
        if not string:
            raise ValueError("stop: expected strings that are not empty, got ''")
    return stops


def _bias(bias) -> dict[int, float] | None:
    if bias is None:
        return None
    if not isinstance(bias, Mapping):
        raise TypeError(f"logit_bias: expected a mapping from token id to a number or None, got {shown(bias)}")
    return {
        integer("logit_bias", token, 0, MAX_INT): number("logit_bias", value, -MAX_BIAS, MAX_BIAS)
        for token, value in bias.items()
    } or None
