"""LLM: a checkpoint that generates."""

import contextlib
import dataclasses
import functools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import next_power_of_2

from pallas_kernels import DTYPES, KVCache, resolve_implementation
from tokenspeed.arguments import boolean, integer, integers, is_sequence, one_of
from tokenspeed.completion import Completion, Delta
from tokenspeed.engine import generation
from tokenspeed.engine.compiling import Clock, Programs
from tokenspeed.engine.generation import BROKEN, Drawn, Generation, Weights
from tokenspeed.engine.row import Row
from tokenspeed.messages import shown
from tokenspeed.models import hf_config
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.decoder import Llama
from tokenspeed.models.memory import PREFILL_TOKENS
from tokenspeed.models.prefill_attention import resolve_prefill_backend
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.sampling.sample import RUNNING
from tokenspeed.sampling.state import make_rows
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.weights import checkpoint
from tokenspeed.weights.default_dtype import default_dtype
from tokenspeed.weights.random import random_model
from tokenspeed.weights.tiny import folder_of

MAX_BATCH = 16
"""Sequences at a time, each with a cache for all of its tokens; more take turns."""
SMALLEST_BUCKET, BUCKET_STEP = 16, 1024
"""Lengths that programs are compiled for: powers of two from the one to the other, then multiples of the other."""
STEPS = 16
"""Tokens drawn between two looks of the host: a GPU does not wait for it, and neither do small models."""
LARGE = 1 << 26
"""Bytes of float32 weights from which a CPU's step takes so long that the host looks after each. XLA converts 16-bit
weights for a CPU, once for all steps of a call."""

Prompt = str | Sequence[int]


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
        options = _options(model.config, model.dtype, max_context, implementation, prefill_backend)
        if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most the model's {model.config.vocab_size} tokens, got {tokenizer.vocab_size}"
            )
        self.model, self.tokenizer = model, tokenizer
        self.max_context, self.implementation, self.prefill_backend = options.values()
        self._rope = model.rope_tables(self.max_context)

    @property
    def model(self) -> Llama:
        return self._model

    @model.setter
    def model(self, model: Llama) -> None:
        self._model, self._dtype = model, model.dtype
        self._weights, self._programs = Weights.of(model), Programs()
        self._caches: dict[tuple[int, ...], list[KVCache]] = {}  # those of the last call, by their shape
        large = self._dtype == jnp.float32 and sum(x.nbytes for x in self._weights.arrays) > LARGE
        self._most_steps = 1 if large and jax.default_backend() == "cpu" else STEPS

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        *,
        dtype: str | None = None,
        max_context: int | None = None,
        implementation: str | None = None,
        prefill_backend: str | None = None,
        progress: bool = False,
    ) -> "LLM":
        """Loads a checkpoint.

        Args:
            folder: in the Hugging Face layout; 'tiny' is the one that ships with the project.
            dtype: 'bfloat16', 'float16' or 'float32'; None for the checkpoint's, or on a CPU for float32, which is
                faster there, if there is memory for it.
            max_context, implementation, prefill_backend: as in `LLM`.
            progress: show a bar on standard error.

        Raises:
            ConfigError, CheckpointError, TokenizerError: something is wrong with the folder; one line says what.
            ValueError: as `LLM`.
        """
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"folder: expected a path, got {shown(folder)}")
        boolean("progress", progress)
        path = folder_of(folder)
        config = hf_config.from_folder(path)
        implementation = resolve_implementation(implementation)
        dtype = default_dtype(config, implementation) if dtype is None else one_of("dtype", dtype, DTYPES)
        options = _options(config, dtype, max_context, implementation, prefill_backend)  # before the weights
        tokenizer = Tokenizer.from_folder(path)
        return cls(checkpoint.load(path, config, dtype=dtype, progress=progress), tokenizer, **options)

    @classmethod
    def random(
        cls,
        config: ModelConfig,
        *,
        dtype: str | None = None,
        seed: int = 0,
        max_context: int | None = None,
        implementation: str | None = None,
        prefill_backend: str | None = None,
    ) -> "LLM":
        """A model with random weights: for measuring, not for reading.

        Args:
            config: its architecture. dtype: as in `from_pretrained`. seed: of the weights.
            max_context, implementation, prefill_backend: as in `LLM`.

        Raises:
            ValueError, TypeError: as `from_pretrained`.
        """
        implementation = resolve_implementation(implementation)
        dtype = default_dtype(config, implementation) if dtype is None else one_of("dtype", dtype, DTYPES)
        options = _options(config, dtype, max_context, implementation, prefill_backend)
        return cls(random_model(config, dtype, integer("seed", seed, 0, 2**32 - 1)), **options)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, text or ids, checked.

        Raises:
            TypeError: neither a text nor a sequence of integers.
            ValueError: it has no token, one outside the vocabulary, or too many for `max_context`.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("prompts: expected token ids, since the folder has no tokenizer")
            prompt = self.tokenizer.encode(prompt)
        elif not is_sequence(prompt):
            raise TypeError(f"prompts: expected a text or a sequence of token ids, got {shown(prompt)}")
        ids = integers("prompts", prompt, 0, self.model.config.vocab_size - 1)
        if not ids:
            raise ValueError("prompts: expected at least one token")
        if len(ids) >= self.max_context:
            raise ValueError(f"prompts: {len(ids)} tokens leave no room in a context of {self.max_context}")
        return ids

    def logits(self, token_ids: Sequence[Sequence[int]] | np.ndarray | jax.Array) -> jax.Array:
        """Teacher-forced logits: of each token's successor, given it and those before it.

        Args:
            token_ids: [B, T], at least one, of at most as many positions as the model has.

        Returns:
            float32 [B, T, V].

        Raises:
            TypeError: ids that are no integers. ValueError: an id outside the vocabulary, or another shape.
        """
        config, wanted = self.model.config, f"shape [B, T], T from 1 to {self.model.config.max_positions}"
        if not is_sequence(token_ids) or not all(is_sequence(row) for row in token_ids):
            raise TypeError(f"token_ids: expected {wanted}, got {shown(token_ids)}")
        rows = [integers("token_ids", row, 0, config.vocab_size - 1) for row in token_ids]
        lengths = {len(row) for row in rows}
        if len(lengths) != 1 or not 1 <= max(lengths) <= config.max_positions:
            raise ValueError(f"token_ids: expected {wanted}, got {len(rows)} rows of {shown(sorted(lengths))} ids")
        self._caches.clear()  # room for the logits
        return _forward(self.model, jnp.asarray(rows, jnp.int32))

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
            TypeError, ValueError: a prompt or its params cannot be run; the message names what.
            FloatingPointError: the model's logits are not finite.
        """
        clock = Clock()
        if not isinstance(prompts, str) and not is_sequence(prompts):
            raise TypeError(f"prompts: expected a text, token ids, or a sequence of such, got {shown(prompts)}")
        prompts = [prompts] if _is_prompt(prompts) else list(prompts)
        params = SamplingParams() if params is None else params
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else _listed(params)
        if len(each) != len(prompts):
            raise ValueError(f"params: expected one, or one for each of {len(prompts)} prompts, got {len(each)}")
        rows = []
        for number, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
            ids, seed = self.encode(prompt), secrets.randbits(64)
            rows += [self._row(number, ids, own, sample, seed) for sample in range(own.n)]
        for i in range(0, len(rows), MAX_BATCH):
            for _ in self._run(rows[i : i + MAX_BATCH], clock):
                pass
        found: dict[int, list[Completion]] = {}
        for row in rows:
            found.setdefault(row.number, []).append(row.completion())
        return [dataclasses.replace(samples[0], samples=samples) for samples in found.values()]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Generates one sample and yields it as it comes; the last Delta has the Completion.

        Raises:
            TypeError, ValueError, FloatingPointError: as `generate`, and where `params.n` is not 1.
        """
        clock = Clock()
        (params,) = _listed([SamplingParams() if params is None else params])
        if params.n != 1:
            raise ValueError(f"n: expected 1 in a stream, got {params.n}")
        return self._deltas(self._row(0, self.encode(prompt), params, 0, secrets.randbits(64)), clock)

    def _deltas(self, row: Row, clock: Clock) -> Iterator[Delta]:
        for _ in self._run([row], clock):
            text, ids = row.news()
            if text or ids:
                yield Delta(text=text, token_ids=ids)
        whole = row.completion()
        yield Delta(text=None if self.tokenizer is None else "", token_ids=[], completion=whole)

    def warm_up(self, prompt_tokens: int, params: SamplingParams) -> float:
        """Compiles what a prompt of that many tokens will run with these params; seconds that compiling took.

        A GPU runs it too, since it records its launches the first time.
        """
        length = integer("prompt_tokens", prompt_tokens, 1, self.max_context - 1)
        _listed([params])
        rows = [self._row(0, [0] * length, params, sample, 0) for sample in range(min(params.n, MAX_BATCH))]
        clock = Clock()
        start = self._begin(rows, clock)
        sizes = self._prepare_decode(rows, start, clock)
        caches = start.caches
        if jax.default_backend() != "cpu":
            state, _ = self._first(start)
            # Those before the last one twice: when it compiles a program, XLA drops the CUDA graphs of all others.
            for steps in sizes + sizes[:-1]:
                state, _ = generation.advance(self._weights, state, self._rope, steps=steps, **start.how)
            caches = jax.block_until_ready(state).caches
        self._keep(caches)
        return clock.compile_s

    def _run(self, rows: list[Row], clock: Clock) -> Iterator[None]:
        """Generates all rows together; yields whenever tokens have come.

        The first token is looked at before anything follows it, so that its time is its own. From there the device is
        one call ahead: the next steps are dispatched before the tokens of those before them are looked at, so that it
        never waits for the host. What it draws too much, behind a row's end, nobody looks at; where all rows will have
        ended by `max_tokens`, there is no next call.
        """
        start = self._begin(rows, clock)
        how, state = start.how, start.caches
        asked, drawn = 1, None  # tokens of each row, those on their way included; what was drawn and not looked at
        try:
            state, first = self._first(start)
            state = self._take(rows, state, first, clock)
            yield
            if any(row.reason is None for row in rows):
                self._prepare_decode(rows, start, clock)
            while any(row.reason is None for row in rows):
                following = None
                left = max(row.max_tokens for row in rows if row.reason is None) - asked
                if left > 0:
                    steps = self._steps(left)
                    state, following = generation.advance(self._weights, state, self._rope, steps=steps, **how)
                    asked += steps
                if drawn is not None:
                    state = self._take(rows, state, drawn, clock)
                    yield
                drawn = following
        finally:
            settled = _settle(state, drawn)
        if settled:  # and nobody has left before the end
            self._keep(state.caches)

    def _keep(self, caches: list[KVCache]) -> None:
        """Leaves the caches to the next call, which then need not make them: hundreds of arrays, of many bytes."""
        self._caches = {caches[0].k.shape: caches}

    def _row(self, number: int, prompt: list[int], params: SamplingParams, sample: int, seed: int) -> Row:
        return Row(
            number, prompt, params, sample, seed,
            tokenizer=self.tokenizer, max_context=self.max_context, config=self.model.config,
        )  # fmt: skip

    def _first(self, start: "_Start") -> tuple[Generation, Drawn]:
        """The prompts in the cache, and the first token of each row."""
        state: Any = start.caches
        for operands, static in start.chunks:
            state = generation.prefill(self._weights, state, *operands, **static)
        return generation.first(self._weights, state, **start.how)

    def _prepare_decode(self, rows: list[Row], start: "_Start", clock: Clock) -> list[int]:
        """Compiles the calls that follow the first token; their steps."""
        prepare, shapes = self._programs.prepare, start.shapes
        most = max(row.max_tokens for row in rows) - 1
        sizes = list(dict.fromkeys(self._steps(left) for left in range(most, 0, -self._most_steps)))
        for steps in sizes:
            prepare(
                clock, shapes, generation.advance, lambda: (self._weights, start.state(), self._rope), steps=steps,
                **start.how,
            )  # fmt: skip
        if any(row.params.stop for row in rows):
            batch = shapes[0][0]
            prepare(clock, shapes, generation.end, lambda: (start.state(), np.zeros(batch, bool)))
        return sizes

    def _steps(self, left: int) -> int:
        """Of the next call, where a row may draw that many tokens more."""
        return min(self._most_steps, next_power_of_2(left))

    def _begin(self, rows: list[Row], clock: Clock) -> "_Start":
        """What the first token takes, compiled."""
        batch = next_power_of_2(len(rows))
        idle = SamplingParams(temperature=0.0)
        params = [row.params for row in rows] + [idle] * (batch - len(rows))
        config = self.model.config
        sampling = make_rows(
            params,
            [row.prompt for row in rows] + [[0]] * (batch - len(rows)),
            config.vocab_size,
            config.eos_ids,
            samples=[row.sample for row in rows] + [0] * (batch - len(rows)),
            default_seeds=[row.seed for row in rows] + [0] * (batch - len(rows)),
        )
        most = np.array([row.max_tokens for row in rows] + [1] * (batch - len(rows)), np.int32)
        needed = max(len(row.prompt) + row.max_tokens for row in rows)
        capacity = min(self.max_context, _bucket(needed))
        asked = [row.params.logprobs for row in rows if row.params.logprobs is not None]
        how = dict(logprobs=max(asked) if asked else None, implementation=self.implementation)
        dtype, prepare = self._dtype, self._programs.prepare
        caches = self._caches.pop((batch, config.num_kv_heads, capacity, config.head_dim), None)
        self._caches.clear()  # before others are made
        if caches is None:
            made = dict(config=config, dtype=dtype, rows=batch, capacity=capacity)
            prepare(clock, (), generation.empty_caches, tuple, **made)
            caches = generation.empty_caches(**made)
        begun = generation.Rows(sampling=sampling, max_tokens=most)
        chunks = list(self._chunks(rows, batch, capacity, begun))
        shapes = caches[0].k.shape, sampling.plan

        @functools.cache
        def state() -> Generation:
            (operands, static), *_ = chunks
            return generation.prefill.eval_shape(self._weights, caches, *operands, **static)

        for operands, static in chunks:
            tokens, begins_at, *_, first = operands
            before = state if first is None else lambda: caches
            of_chunk = shapes, tokens.shape[1], begins_at is None, first is None
            prepare(
                clock, of_chunk, generation.prefill,
                lambda before=before, operands=operands: (self._weights, before(), *operands), **static,
            )  # fmt: skip
        prepare(clock, shapes, generation.first, lambda: (self._weights, state()), **how)
        return _Start(caches, how, chunks, shapes, state)

    def _chunks(self, rows, batch, capacity, begun):
        """The prompts in buckets of length: what prefill takes behind the state, and its static arguments."""
        lengths = np.array([len(row.prompt) for row in rows] + [0] * (batch - len(rows)), np.int32)
        longest, start = int(lengths.max()), 0
        while start < longest:
            size = min(max(PREFILL_TOKENS // batch, SMALLEST_BUCKET), _bucket(longest - start))
            tokens = np.zeros((batch, size), np.int32)
            for i, row in enumerate(rows):
                part = row.prompt[start : start + size]
                tokens[i, : len(part)] = part
            static = dict(
                capacity=min(capacity, _bucket(start + size)),
                prefill_backend=self.prefill_backend,
                implementation=self.implementation,
            )
            first = start == 0
            yield (tokens, None if first else np.int32(start), lengths, self._rope, begun if first else None), static
            start += size

    def _take(self, rows: list[Row], state: Generation, drawn: Drawn, clock: Clock) -> Generation:
        """Gives what was drawn to the rows; the state, without those that a stop string has ended, and not the device.

        Raises:
            FloatingPointError: logits were not finite.
        """
        drawn = jax.device_get(drawn)
        now = clock.now()
        stopped = np.zeros(drawn.tokens.shape[1], bool)
        for i, row in enumerate(rows):
            if row.reason is None:
                if (drawn.tokens[:, i] == BROKEN).any():
                    raise FloatingPointError(f"prompt {row.number}: the model's logits are not finite")
                row.take(drawn, i, now)
                row.compile_s = clock.compile_s
                stopped[i] = row.reason is not None and drawn.reason[i] == RUNNING
        if stopped.any() and any(row.reason is None for row in rows):
            state = generation.end(state, stopped)
        return state


@jax.jit
def _forward(model, tokens):
    return model(tokens)


class _Start(NamedTuple):
    """What the first token of a call takes.

    Attributes:
        caches: with anything in them. how: the static arguments of steps.
        chunks: of the prompts, as `LLM._chunks` gives them.
        shapes: what the shapes of all arrays of the state follow from, for one model.
        state: describes the state that prefill leaves, by `jax.ShapeDtypeStruct`.
    """

    caches: list[KVCache]
    how: dict[str, Any]
    chunks: list
    shapes: tuple
    state: Callable[[], Generation]


def _settle(*trees: Any) -> bool:
    """Waits for what is under way: a process that ended before it would be aborted. Whether nothing of it failed."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # of a computation that failed, which was told
        jax.block_until_ready([x for x in jax.tree.leaves(trees) if not x.is_deleted()])
        return True
    return False


def _is_prompt(value) -> bool:
    """Whether it is one prompt, and not a sequence of them."""
    if isinstance(value, str) or set(map(type, value)) == {int}:  # which takes no Python for each token
        return True
    return len(value) > 0 and not any(isinstance(i, str) or is_sequence(i) for i in value)


def _listed(params) -> list[SamplingParams]:
    found = list(params) if is_sequence(params) else [params]
    wrong = [one for one in found if not isinstance(one, SamplingParams)]
    if wrong:
        raise TypeError(f"params: expected SamplingParams, or one for each prompt, got {shown(wrong[0])}")
    return found


def _options(config: ModelConfig, dtype, max_context, implementation, prefill_backend) -> dict[str, Any]:
    """The options of `LLM` as they will be; they are checked before weights are loaded."""
    limit = config.max_positions
    if max_context is not None:
        max_context = integer("max_context", max_context, 1, limit, of=", the positions of the model")
    implementation = resolve_implementation(implementation)
    backend = resolve_prefill_backend(
        prefill_backend, implementation=implementation, dtype=dtype, head_dim=config.head_dim
    )
    return dict(max_context=max_context or limit, implementation=implementation, prefill_backend=backend)


def _bucket(length: int) -> int:
    if length <= BUCKET_STEP:
        return max(SMALLEST_BUCKET, next_power_of_2(length))
    return -(-length // BUCKET_STEP) * BUCKET_STEP
