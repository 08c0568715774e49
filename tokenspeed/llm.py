"""LLM: a checkpoint that generates."""

import dataclasses
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import next_power_of_2

from pallas_kernels import DTYPES, resolve_implementation
from tokenspeed.engine import generation
from tokenspeed.engine.generation import BROKEN, Drawn, Generation, Weights
from tokenspeed.models import hf_config
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.decoder import Llama
from tokenspeed.models.memory import PREFILL_TOKENS
from tokenspeed.models.prefill_attention import resolve_prefill_backend
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.sampling.sample import LENGTH, RUNNING
from tokenspeed.sampling.state import SamplingState, make_plan, make_state
from tokenspeed.text.stream import TextStream
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.weights import checkpoint
from tokenspeed.weights.random import random_model

MAX_BATCH = 16
"""Sequences at a time, each with a cache for all of its tokens; more take turns."""
SMALLEST_BUCKET, BUCKET_STEP = 16, 1024
"""Lengths that programs are compiled for: powers of two from the one to the other, then multiples of the other."""
STEPS = 16
"""Tokens drawn between two looks of the host."""

Prompt = str | Sequence[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """How likely one drawn token was.

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
    """Where the time of a completion went.

    Attributes:
        ttft_s: seconds from the call to the first token, the whole batch's prefill included.
        decode_s: seconds from there to the last token.
        decode_tokens: how many came in `decode_s`; the first token is not among them.
    """

    ttft_s: float
    decode_s: float
    decode_tokens: int

    @property
    def tokens_per_s(self) -> float:
        """Of this sequence, after its first token."""
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0


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
    samples: list["Completion"] = dataclasses.field(default_factory=list, repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta:
    """The next piece of a stream.

    Attributes:
        text: new text, or None where the folder has no tokenizer. token_ids: new ids.
        completion: all of it, in the last piece; else None.
    """

    text: str | None
    token_ids: list[int]
    completion: Completion | None = None


class LLM:
    """A model with its tokenizer, ready to generate.

    Args:
        model: the decoder. tokenizer: or None, for token ids only.
        max_context: positions a sequence may take, prompt and output together; the model's own limit if None.
        implementation: of the kernels: 'triton', 'xla', 'interpret', or None to choose by device.
        prefill_backend: whose attention prefill runs: 'cudnn', 'xla', or None to choose by device and model.

    Raises:
        ValueError: an argument is out of range, or what it names cannot run here; the message names it.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer | None = None,
        *,
        max_context: int | None = None,
        implementation: str | None = None,
        prefill_backend: str | None = None,
    ):
        limit = model.config.max_positions
        max_context = limit if max_context is None else max_context
        if not 1 <= max_context <= limit:
            raise ValueError(f"max_context: expected 1 to {limit}, the positions of the model, got {max_context}")
        if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most the model's {model.config.vocab_size} tokens, got {tokenizer.vocab_size}"
            )
        self.model, self.tokenizer, self.max_context = model, tokenizer, max_context
        self.implementation = resolve_implementation(implementation)
        self.prefill_backend = resolve_prefill_backend(
            prefill_backend, implementation=self.implementation, dtype=model.dtype, head_dim=model.config.head_dim
        )
        self._rope = model.rope_tables(max_context)

    @property
    def model(self) -> Llama:
        return self._model

    @model.setter
    def model(self, model: Llama) -> None:
        self._model, self._weights = model, Weights.of(model)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: str | None = None,
        max_context: int | None = None,
        implementation: str | None = None,
        prefill_backend: str | None = None,
        progress: bool = False,
    ) -> "LLM":
        """Loads a checkpoint.

        Args:
            folder: in the Hugging Face layout. dtype: 'bfloat16', 'float16' or 'float32'; the checkpoint's if None.
            max_context, implementation, prefill_backend: as in `LLM`.
            progress: show a bar on standard error.

        Raises:
            ConfigError, CheckpointError, TokenizerError: something is wrong with the folder; one line says what.
            ValueError: as `LLM`.
        """
        _check_dtype(dtype)
        config = hf_config.from_folder(folder)
        tokenizer = Tokenizer.from_folder(folder)
        model = checkpoint.load(folder, config, dtype=dtype, progress=progress)
        return cls(
            model, tokenizer, max_context=max_context, implementation=implementation, prefill_backend=prefill_backend
        )

    @classmethod
    def random(cls, config: ModelConfig, *, dtype: str | None = None, seed: int = 0, **options) -> "LLM":
        """A model with random weights: for measuring, not for reading.

        Args:
            config: its architecture. dtype: as in `from_pretrained`. seed: of the weights.
            options: further arguments of `LLM`.
        """
        _check_dtype(dtype)
        return cls(random_model(config, dtype or config.dtype, seed), **options)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, text or ids, checked.

        Raises:
            ValueError: it has no token, one outside the vocabulary, or too many for `max_context`.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("prompts: expected token ids, since the folder has no tokenizer")
            ids = self.tokenizer.encode(prompt)
        else:
            ids = [int(i) for i in prompt]
        if not ids:
            raise ValueError("prompts: expected at least one token")
        if min(ids) < 0 or max(ids) >= self.model.config.vocab_size:
            raise ValueError(f"prompts: expected token ids from 0 to {self.model.config.vocab_size - 1}")
        if len(ids) >= self.max_context:
            raise ValueError(f"prompts: {len(ids)} tokens leave no room in a context of {self.max_context}")
        return ids

    def logits(self, token_ids: Sequence[Sequence[int]] | np.ndarray) -> jax.Array:
        """Teacher-forced logits: of each token's successor, given it and those before it.

        Args:
            token_ids: [B, T].

        Returns:
            float32 [B, T, V].

        Raises:
            ValueError: another number of dimensions.
        """
        tokens = jnp.asarray(np.asarray(token_ids, np.int32))
        if tokens.ndim != 2:
            raise ValueError(f"token_ids: expected shape [B, T], got {list(tokens.shape)}")
        return _forward(self.model, tokens)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Continues prompts.

        Args:
            prompts: texts or lists of token ids; one prompt may be given as it is.
            params: for all prompts, or one for each; greedy would be `SamplingParams(temperature=0)`.

        Returns:
            A Completion for each prompt, in their order.

        Raises:
            ValueError: a prompt or its params cannot be run; the message names what.
            FloatingPointError: the model's logits are not finite.
        """
        prompts = [prompts] if _is_prompt(prompts) else list(prompts)
        params = SamplingParams() if params is None else params
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"params: expected one, or one for each of {len(prompts)} prompts, got {len(each)}")
        rows = []
        for number, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
            ids, seed = self.encode(prompt), secrets.randbits(64)
            rows += [_Row(self, number, ids, own, sample, seed) for sample in range(own.n)]
        for i in range(0, len(rows), MAX_BATCH):
            for _ in self._run(rows[i : i + MAX_BATCH]):
                pass
        found: dict[int, list[Completion]] = {}
        for row in rows:
            found.setdefault(row.number, []).append(row.completion())
        return [dataclasses.replace(samples[0], samples=samples) for samples in found.values()]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Generates one sample and yields it as it comes; the last Delta has the Completion.

        Raises:
            ValueError, FloatingPointError: as `generate`, and where `params.n` is not 1.
        """
        params = SamplingParams() if params is None else params
        if params.n != 1:
            raise ValueError(f"n: expected 1 in a stream, got {params.n}")
        row = _Row(self, 0, self.encode(prompt), params, 0, secrets.randbits(64))
        for _ in self._run([row]):
            text, ids = row.news()
            if text or ids:
                yield Delta(text=text, token_ids=ids)
        whole = row.completion()
        yield Delta(text=None if self.tokenizer is None else "", token_ids=[], completion=whole)

    def warm_up(self, prompt_tokens: int, params: SamplingParams) -> None:
        """Compiles what a prompt of that many tokens will run with these params, so that its timings are without it."""
        rows = [_Row(self, 0, [0] * prompt_tokens, params, sample, 0) for sample in range(min(params.n, MAX_BATCH))]
        state, how = self._prefilled(rows)
        state, _ = generation.first(self._weights, state, **how)
        sizes = list(dict.fromkeys(_steps(left) for left in range(rows[0].max_tokens - 1, 0, -STEPS)))
        # Those before the last one twice: when it compiles a program, XLA drops the CUDA graphs of all others.
        for steps in sizes + sizes[:-1]:
            state, _ = generation.advance(self._weights, state, self._rope, steps=steps, **how)
        jax.block_until_ready(state)

    def _prefilled(self, rows: list["_Row"]) -> tuple[Generation, dict]:
        """The rows' prompts in the cache, and the static arguments of what follows."""
        state, logprobs, capacity = self._begin(rows)
        for tokens, start, lengths, static in self._chunks(rows, len(state.token), capacity):
            state = generation.prefill(self._weights, state, tokens, start, lengths, self._rope, **static)
        return state, dict(logprobs=logprobs, implementation=self.implementation)

    def _run(self, rows: list["_Row"]) -> Iterator[None]:
        """Generates all rows together; yields whenever tokens have come.

        The device is one call ahead: the next steps are dispatched before the tokens of those before them are looked
        at, so that it never waits for the host. What it draws too much, behind a row's end, nobody looks at; where
        all rows will have ended by `max_tokens`, there is no next call.
        """
        begun = time.perf_counter()
        state, how = self._prefilled(rows)
        state, drawn = generation.first(self._weights, state, **how)
        asked = 1  # tokens of each row, those on their way included
        while True:
            following = None
            left = max(row.max_tokens for row in rows if row.reason is None) - asked
            if left > 0:
                steps = _steps(left)
                state, following = generation.advance(self._weights, state, self._rope, steps=steps, **how)
                asked += steps
            stopped = self._take(rows, drawn, begun)
            yield
            if all(row.reason is not None for row in rows):
                return
            if stopped.any():
                state = generation.end(state, stopped)
            drawn = following

    def _begin(self, rows: list["_Row"]) -> tuple[Generation, int | None, int]:
        batch = next_power_of_2(len(rows))
        idle = SamplingParams(temperature=0.0)
        params = [row.params for row in rows] + [idle] * (batch - len(rows))
        config = self.model.config
        sampling: SamplingState = make_state(
            params,
            [row.prompt for row in rows] + [[0]] * (batch - len(rows)),
            config.vocab_size,
            config.eos_ids,
            samples=[row.sample for row in rows] + [0] * (batch - len(rows)),
            default_seeds=[row.seed for row in rows] + [0] * (batch - len(rows)),
            plan=make_plan(params, config.vocab_size, config.eos_ids),
        )
        most = np.array([row.max_tokens for row in rows] + [1] * (batch - len(rows)), np.int32)
        needed = max(len(row.prompt) + row.max_tokens for row in rows)
        capacity = min(self.max_context, _bucket(needed))
        asked = [row.params.logprobs for row in rows if row.params.logprobs is not None]
        state = generation.begin(config, self.model.dtype, sampling, jnp.asarray(most), capacity=capacity)
        return state, max(asked) if asked else None, capacity

    def _chunks(self, rows, batch, capacity):
        """The prompts in buckets of length: (tokens [B, T], start, lengths [B], static arguments of their prefill)."""
        lengths = np.array([len(row.prompt) for row in rows] + [0] * (batch - len(rows)), np.int32)
        longest, start = int(lengths.max()), 0
        while start < longest:
            size = min(max(PREFILL_TOKENS // batch, SMALLEST_BUCKET), _bucket(longest - start))
            tokens = np.zeros((batch, size), np.int32)
            for i, row in enumerate(rows):
                part = row.prompt[start : start + size]
                tokens[i, : len(part)] = part
            yield (
                jnp.asarray(tokens),
                jnp.int32(start),
                jnp.asarray(lengths),
                dict(
                    capacity=min(capacity, _bucket(start + size)),
                    prefill_backend=self.prefill_backend if start == 0 else "xla",
                ),
            )
            start += size

    def _take(self, rows: list["_Row"], drawn: Drawn, begun: float) -> np.ndarray:
        """Gives what was drawn to the rows; bool [B], which of them a stop string has ended now, and not the device."""
        drawn = jax.device_get(drawn)
        now = time.perf_counter() - begun
        stopped = np.zeros(drawn.tokens.shape[1], bool)
        for i, row in enumerate(rows):
            if row.reason is None:
                if (drawn.tokens[:, i] == BROKEN).any():
                    raise FloatingPointError(f"prompt {row.number}: the model's logits are not finite")
                row.take(drawn, i, now)
                stopped[i] = row.reason is not None and drawn.reason[i] == RUNNING
        return stopped


class _Row:
    """One sample of one prompt, on the host."""

    def __init__(self, llm: LLM, number: int, prompt: list[int], params: SamplingParams, sample: int, seed: int):
        room = llm.max_context - len(prompt)
        self.number, self.prompt, self.params, self.sample, self.seed = number, prompt, params, sample, seed
        self.max_tokens = room if params.max_tokens is None else min(room, params.max_tokens)
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self.reason: str | None = None
        self.stop_reason: str | int | None = None
        self.text = ""
        self.first_s = self.last_s = 0.0
        self.told = 0, 0
        self.eos_ids = set() if params.ignore_eos else set(llm.model.config.eos_ids)
        if params.stop and llm.tokenizer is None:
            raise ValueError("stop: expected none, since the folder has no tokenizer (stop_token_ids work)")
        self.stream = None
        if llm.tokenizer is not None:
            self.stream = TextStream(
                llm.tokenizer,
                params.stop,
                include_in_output=params.include_stop_str_in_output,
                skip_special_tokens=params.skip_special_tokens,
            )

    def take(self, drawn: Drawn, row: int, now: float) -> None:
        """Takes the tokens of a few steps, which arrived `now`."""
        ids = [int(i) for i in drawn.tokens[:, row] if i >= 0]
        reason = int(drawn.reason[row])
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
            self.logprobs += [self._logprob(drawn, step, row) for step in range(len(kept))]
        if not self.ids and not self.first_s:
            self.first_s = now
        self.last_s = now
        self.ids += kept
        if stopped_by is not None:
            self.reason, self.stop_reason = "stop", stopped_by
        elif reason != RUNNING:
            self.reason = "length" if reason == LENGTH else "stop"

    def _logprob(self, drawn, step, row) -> TokenLogprob:
        found, count = drawn.logprobs, self.params.logprobs
        top = zip(found.top_ids[step, row, :count].tolist(), found.top[step, row, :count].tolist(), strict=True)
        return TokenLogprob(
            token_id=int(drawn.tokens[step, row]),
            logprob=float(found.sampled[step, row]),
            rank=int(found.rank[step, row]),
            top=dict(top),
        )

    def news(self) -> tuple[str | None, list[int]]:
        """What has come since the last call."""
        text, ids = self.told
        self.told = len(self.text), len(self.ids)
        return (None if self.stream is None else self.text[text:]), self.ids[ids:]

    def completion(self) -> Completion:
        assert self.reason is not None
        timings = Timings(
            ttft_s=self.first_s, decode_s=self.last_s - self.first_s, decode_tokens=max(0, len(self.ids) - 1)
        )
        whole = Completion(
            text=None if self.stream is None else self.text,
            token_ids=self.ids,
            finish_reason=self.reason,
            stop_reason=self.stop_reason,
            logprobs=self.logprobs,
            prompt_token_ids=self.prompt,
            timings=timings,
        )
        return dataclasses.replace(whole, samples=[whole])


@jax.jit
def _forward(model, tokens):
    return model(tokens)


def _is_prompt(value) -> bool:
    return isinstance(value, str) or (len(value) > 0 and all(isinstance(i, int | np.integer) for i in value))


def _check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")


def _steps(left: int) -> int:
    """Of the next call, where a row may draw that many tokens more."""
    return min(STEPS, next_power_of_2(left))


def _bucket(length: int) -> int:
    if length <= BUCKET_STEP:
        return max(SMALLEST_BUCKET, next_power_of_2(length))
    return -(-length // BUCKET_STEP) * BUCKET_STEP
