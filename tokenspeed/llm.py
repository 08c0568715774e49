"""LLM: a checkpoint that generates."""

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import DTYPES, resolve_implementation
from tokenspeed.arguments import MAX_INT, boolean, integer, integers, is_sequence, one_of
from tokenspeed.completion import Completion, Delta
from tokenspeed.engine.build import EngineOptions, offline
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.input_processor import InputProcessor, Prompt
from tokenspeed.engine.row import Row
from tokenspeed.engine.sizes import check_kv_bytes, least_batched_tokens
from tokenspeed.messages import shown
from tokenspeed.models import hf_config, kv_dtypes
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.decoder import Llama
from tokenspeed.models.kv_dtypes import KVDtypes
from tokenspeed.models.prefill_attention import resolve_prefill_backend
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.weights import checkpoint
from tokenspeed.weights.default_dtype import default_dtype
from tokenspeed.weights.random import random_model
from tokenspeed.weights.tiny import folder_of

MAX_BATCH, MOST_BATCH = 64, 256
"""Sequences at a time, more take turns: unless asked otherwise, and at most."""


class LLM:
    """A model with its tokenizer, ready to generate.

    Args:
        model: the decoder. tokenizer: or None, for token ids only.
        max_context: positions a sequence may take, prompt and output together; the model's own limit if None.
        max_batch: sequences that run at a time; more take turns.
        max_batched_tokens: that a step computes at most, of prompts and in decode; `max_batch` + 63 or more. The more,
            the fewer steps a crowd of prompts waits for, and the longer each of them keeps others from their next
            token. None: 1024 of prompts while others are in decode, about 500 of a long one; without others 2048, or
            offline 8192.
        kv_bytes: of the pool of keys and values; None: as many as `max_batch` sequences of `max_context` take, as far
            as there is memory, on a CPU at most a GiB.
        kv_dtype: what keys and values are stored in: 'auto' (the model's dtype), 'fp8' or 'int8', or two of these, of
            keys and of values, such as 'auto/fp8'. In 8 bits they take half the memory, and are rounded by a scale for
            each layer and kv head: the checkpoint's, else one found when the engine is made (`models.kv_scales`).
        prefix_caching: prompts that begin alike share the pages of what they have in common.
        batch_invariant: a prompt's tokens and log-probabilities are the same bits whoever else is there, whether its
            pages were found, and whether it was preempted; every step then takes as long as that of a full batch.
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
        max_batch: int = MAX_BATCH,
        max_batched_tokens: int | None = None,
        kv_bytes: int | None = None,
        kv_dtype: str = kv_dtypes.AUTO,
        prefix_caching: bool = True,
        batch_invariant: bool = False,
        implementation: str | None = None,
        prefill_backend: str | None = None,
    ):
        options = _options(
            model.config, model.dtype, max_context=max_context, max_batch=max_batch,
            max_batched_tokens=max_batched_tokens, kv_bytes=kv_bytes, kv_dtype=kv_dtype, prefix_caching=prefix_caching,
            batch_invariant=batch_invariant, implementation=implementation, prefill_backend=prefill_backend,
        )  # fmt: skip
        if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most the model's {model.config.vocab_size} tokens, got {tokenizer.vocab_size}"
            )
        self.tokenizer = tokenizer
        self.options = EngineOptions(**options)
        self._ids = itertools.count()
        self.model = model

    @property
    def max_context(self) -> int:
        return self.options.max_context

    @property
    def kv(self) -> KVDtypes:
        """What keys and values are stored in."""
        return kv_dtypes.parse("kv_dtype", self.options.kv_dtype, self.model.dtype)

    @property
    def implementation(self) -> str:
        return self.options.implementation

    @property
    def prefill_backend(self) -> str:
        return self.options.prefill_backend

    @property
    def model(self) -> Llama:
        return self._model

    @model.setter
    def model(self, model: Llama) -> None:
        self._model, self._made = model, None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        *,
        dtype: str | None = None,
        activations: str | None = None,
        progress: bool = False,
        **options: Any,
    ) -> "LLM":
        """Loads a checkpoint.

        Args:
            folder: in the Hugging Face layout; 'tiny' is the one that ships with the project.
            dtype: 'bfloat16', 'float16' or 'float32'; None for the checkpoint's, or on a CPU for float32, which is
                faster there, if there is memory for it.
            activations: of int8 and int4 weights: 'int8' rounds them to 8 bits, 16 neighbours with a scale, which takes
                half of the products; None leaves 16 bits.
            progress: show a bar on standard error.
            options: the others of `LLM`.

        Raises:
            ConfigError, CheckpointError, TokenizerError: something is wrong with the folder; one line says what.
            ValueError: as `LLM`.
        """
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"folder: expected a path, got {shown(folder)}")
        boolean("progress", progress)
        path = folder_of(folder)
        config = hf_config.from_folder(path).with_activations(activations)
        options["implementation"] = resolve_implementation(options.get("implementation"))
        dtype = _dtype(config, dtype, options["implementation"])
        options = _options(config, dtype, **options)  # before the weights
        tokenizer = Tokenizer.from_folder(path)
        return cls(checkpoint.load(path, config, dtype=dtype, progress=progress), tokenizer, **options)

    @classmethod
    def random(
        cls,
        config: ModelConfig,
        *,
        dtype: str | None = None,
        activations: str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> "LLM":
        """A model with random weights: for measuring, not for reading.

        Args:
            config: its architecture. dtype, activations: as in `from_pretrained`. seed: of the weights.
            options: the others of `LLM`.

        Raises:
            ValueError, TypeError: as `from_pretrained`.
        """
        config = config.with_activations(activations)
        options["implementation"] = resolve_implementation(options.get("implementation"))
        dtype = _dtype(config, dtype, options["implementation"])
        options = _options(config, dtype, **options)
        return cls(random_model(config, dtype, integer("seed", seed, 0, 2**32 - 1)), **options)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, text or ids, checked.

        Raises:
            TypeError: neither a text nor a sequence of integers.
            ValueError: it has no token, one outside the vocabulary, or too many for `max_context`.
        """
        return self._inputs.encode(prompt)

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
        if self._made is not None and self._made.is_idle:
            self._made = None  # room for the logits
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
        called = time.perf_counter()
        if not isinstance(prompts, str) and not is_sequence(prompts):
            raise TypeError(f"prompts: expected a text, token ids, or a sequence of such, got {shown(prompts)}")
        prompts = [prompts] if _is_prompt(prompts) else list(prompts)
        params = SamplingParams() if params is None else params
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else _listed(params)
        if len(each) != len(prompts):
            raise ValueError(f"params: expected one, or one for each of {len(prompts)} prompts, got {len(each)}")
        inputs = self._inputs
        rows = [row for i, (prompt, own) in enumerate(zip(prompts, each)) for row in inputs.rows(i, prompt, own)]
        with self._running(rows, called) as engine:
            while any(row.reason is None for row in rows):
                for _, row in engine.step():
                    if row.reason == "error":
                        row.completion()  # which raises
        found: dict[int, list[Completion]] = {}
        for row in rows:
            found.setdefault(row.number, []).append(row.completion())
        return [dataclasses.replace(samples[0], samples=samples) for samples in found.values()]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Generates one sample and yields it as it comes; the last Delta has the Completion.

        Raises:
            TypeError, ValueError, FloatingPointError: as `generate`, and where `params.n` is not 1.
        """
        called = time.perf_counter()
        (params,) = _listed([SamplingParams() if params is None else params])
        if params.n != 1:
            raise ValueError(f"n: expected 1 in a stream, got {params.n}")
        return self._deltas(*self._inputs.rows(0, prompt, params), called)

    def _deltas(self, row: Row, called: float) -> Iterator[Delta]:
        with self._running([row], called) as engine:
            while row.reason is None:
                engine.step()
                if (delta := row.news()) is not None:
                    yield delta
            last = row.news(row.completion())
        assert last is not None
        yield last

    def warm_up(self, prompt_tokens: int, params: SamplingParams) -> float:
        """Compiles what a prompt of that many tokens will run with these params; seconds that compiling took.

        A GPU runs it too, since it records its launches the first time.
        """
        length = integer("prompt_tokens", prompt_tokens, 1, self.max_context - 1)
        _listed([params])
        row, engine = self._inputs.rows(0, [0] * length, params)[0], self._engine
        return engine.runner.prepare(engine.programs_for(row, min(params.n, self.options.max_batch)))

    @contextlib.contextmanager
    def _running(self, rows: list[Row], called: float) -> Iterator[Engine]:
        """The engine with these rows added, whose times are from `called` on; what is left at the end is cancelled."""
        took = time.perf_counter() - called
        engine, ids, leaders = self._engine, [next(self._ids) for _ in rows], {}
        try:
            for id, row in zip(ids, rows, strict=True):
                leader = leaders.setdefault(row.number, id)
                engine.add(id, row, leader=None if leader == id else leader)
                row.begun_s -= took
            yield engine
        finally:
            for id in ids:
                engine.cancel(id)
            engine.drain()

    @property
    def _engine(self) -> Engine:
        """Made when it is first needed: its pool takes what memory the weights leave."""
        if self._made is None:
            self._made = offline(self.model, self.options)
        return self._made

    @property
    def _inputs(self) -> InputProcessor:
        return InputProcessor(self.model.config, self.tokenizer, self.max_context)


@jax.jit
def _forward(model, tokens):
    return model(tokens)


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


def _dtype(config: ModelConfig, dtype: str | None, implementation: str) -> str:
    return default_dtype(config, implementation) if dtype is None else one_of("dtype", dtype, DTYPES)


def _options(
    config: ModelConfig,
    dtype: Any,
    *,
    max_context: int | None = None,
    max_batch: int = MAX_BATCH,
    max_batched_tokens: int | None = None,
    kv_bytes: int | None = None,
    kv_dtype: str = kv_dtypes.AUTO,
    prefix_caching: bool = True,
    batch_invariant: bool = False,
    implementation: str | None = None,
    prefill_backend: str | None = None,
) -> dict[str, Any]:
    """The options of `LLM` as they will be; they are checked before weights are loaded."""
    limit = config.max_positions
    if max_context is not None:
        max_context = integer("max_context", max_context, 1, limit, of=", the positions of the model")
    implementation = resolve_implementation(implementation)
    backend = resolve_prefill_backend(
        prefill_backend, implementation=implementation, dtype=dtype, head_dim=config.head_dim
    )
    integer("max_batch", max_batch, 1, MOST_BATCH)
    if max_batched_tokens is not None:
        integer("max_batched_tokens", max_batched_tokens, least_batched_tokens(max_batch), MAX_INT)
        if batch_invariant:
            raise ValueError("max_batched_tokens: with batch_invariant every chunk has the same length; expected None")
    kv = kv_dtypes.parse("kv_dtype", kv_dtype, dtype)
    kv_dtypes.check_device("kv_dtype", kv, implementation)
    if kv_bytes is not None:
        check_kv_bytes(config, kv_bytes, kv=kv, max_context=max_context or limit)
    boolean("prefix_caching", prefix_caching)
    boolean("batch_invariant", batch_invariant)
    return dict(
        max_context=max_context or limit, max_batch=max_batch, max_batched_tokens=max_batched_tokens, kv_bytes=kv_bytes,
        kv_dtype=kv_dtype, prefix_caching=prefix_caching, batch_invariant=batch_invariant,
        implementation=implementation, prefill_backend=backend,
    )  # fmt: skip
