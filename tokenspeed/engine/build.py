"""Builds an engine for a model: the pool by the memory that is there, the programs by who is to use them."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tokenspeed.engine.engine import Engine
from tokenspeed.engine.generation import FEW_TOKENS
from tokenspeed.engine.limits import Limits
from tokenspeed.engine.runner import Runner
from tokenspeed.engine.shapes import PASS_TOKENS, any_size, invariant, served
from tokenspeed.engine.sizes import sizes
from tokenspeed.models import kv_dtypes
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.decoder import Llama
from tokenspeed.models.memory import PREFILL_TOKENS

OVERTAKES = 4
"""How often a long prompt may be overtaken by short ones."""
STEPS = 16
"""Tokens drawn between two looks of the host, where nobody waits for them."""
LARGE = 1 << 26
"""Bytes of float32 weights from which a CPU's step takes so long that the host looks after each. XLA converts 16-bit
weights for a CPU, once for all steps of a call."""
SERVED_TOKENS = 2048
"""Of a step of a served model at most, and of a chunk: longer prompts are long ones."""
PREFILL_TOKENS_BESIDE = 1024
"""Of prefill beside decodes: one pass over the weights for a prompt of common length."""
LONG_TOKENS = 500
"""The same while a long prompt is in prefill: on an H200 they take less than three times a step of decode, whatever the
model, as both follow the weights."""
SHORT_CHUNKS = 2.4
"""How much longer attention to what is far behind takes in chunks of 128 and 256 than its operations would at the speed
of a chunk's products, measured on an H200: a short chunk fills a part of the device."""
SMALL = 4 << 30
"""Bytes of weights up to which a served model's step is so short that the host starts a few together."""
SERVED_STEPS = 4
INVARIANT_TOKENS = FEW_TOKENS
"""Of every chunk of a batch-invariant engine: as many as the kernels of decode take."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What an engine is built by; see `LLM` for what the fields mean."""

    max_context: int
    max_batch: int
    max_batched_tokens: int | None = None
    kv_bytes: int | None
    prefix_caching: bool
    batch_invariant: bool
    implementation: str
    prefill_backend: str
    kv_dtype: str = kv_dtypes.AUTO


def offline(model: Llama, options: EngineOptions) -> Engine:
    """For whole batches: large chunks, many steps at a time, each program compiled when it is first needed."""
    large = model.dtype == jnp.float32 and _weight_bytes(model) > LARGE
    steps = 1 if large and jax.default_backend() == "cpu" else STEPS
    return _built(model, options, tokens=PREFILL_TOKENS, steps=steps, serve=False)


def for_serving(
    model: Llama, options: EngineOptions, *, progress: bool = False, runner: Callable[..., Runner] = Runner
) -> Engine:
    """For requests that come and go: all programs are compiled and run once, and none is compiled any more.

    Args:
        progress: show a bar on standard error.
        runner: `Runner`, or a class of such that stand in for the device.
    """
    steps = SERVED_STEPS if _weight_bytes(model) <= SMALL else 1
    engine = _built(model, options, tokens=SERVED_TOKENS, steps=steps, serve=True, runner=runner)
    engine.runner.prepare(engine.runner.all_programs(), progress=progress)
    engine.runner.closed = True
    return engine


def _built(
    model: Llama,
    options: EngineOptions,
    *,
    tokens: int,
    steps: int,
    serve: bool,
    runner: Callable[..., Runner] = Runner,
) -> Engine:
    o = options
    most, tokens = tokens, o.max_batched_tokens or tokens
    if o.batch_invariant:
        most, tokens, steps = INVARIANT_TOKENS, INVARIANT_TOKENS, 1
    kv = kv_dtypes.parse("kv_dtype", o.kv_dtype, model.dtype)
    found = sizes(
        model.config, dtype=str(model.dtype), kv=kv, max_batch=o.max_batch, max_context=o.max_context,
        prefill_tokens=max(tokens, most), kv_bytes=o.kv_bytes,
    )  # fmt: skip
    chunk = -(-min(tokens, most, o.max_context) // found.page_size) * found.page_size
    # Of those in decode. A batch-invariant chunk has one length; offline nobody looks at the time between two tokens.
    protected = serve and chunk >= 2 * found.page_size and not (o.batch_invariant or o.max_batched_tokens)
    how = dict(max_rows=o.max_batch, max_context=o.max_context)
    if o.batch_invariant:
        shapes = invariant(chunk=chunk, **how)
    else:
        how |= dict(steps=steps)
        shapes = served(tokens=tokens, **how) if serve else any_size(tokens=max(most, chunk), **how)
    align = chunk if o.batch_invariant else 0
    limits = Limits(
        max_rows=o.max_batch, chunk=chunk, max_context=o.max_context,
        token_budget=o.max_batched_tokens or max(tokens, chunk) + o.max_batch - 1,
        overtakes=OVERTAKES, replay=o.batch_invariant, align=align,
        lengths=tuple(length for length in shapes.lengths if length % (align or found.page_size) == 0),
        prefill_budget=min(PREFILL_TOKENS_BESIDE, chunk) if protected else 0,
        long_budget=min(LONG_TOKENS, chunk) if protected else 0,
        attention_tokens=_attention_tokens(model.config), pass_tokens=PASS_TOKENS,
    )  # fmt: skip
    made = runner(model, found, shapes, kv=kv, implementation=o.implementation, prefill_backend=o.prefill_backend)
    return Engine(made, limits, steps=steps, reuse=o.prefix_caching, by_kind=o.batch_invariant)


def _weight_bytes(model: Llama) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model))


def _attention_tokens(config: ModelConfig) -> int:
    """How many tokens attention sees in the time of a token's products."""
    operations = 2 * config.num_heads * config.head_dim * config.num_layers
    return max(1, int(config.num_parameters / (SHORT_CHUNKS * operations)))
