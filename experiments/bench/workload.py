"""Whole decode steps as they are timed: a model of random weights, sequences of random caches, the engine's own loop.

A step is all that a token depends on: the embedding of the last token, every layer, the head, the argmax, the next
position. Steps follow each other in one program of a static trip count, so the host starts one call for all of them.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.compiling import compile_all
from experiments.bench.operands import random_cache
from experiments.bench.pages import pages_of, shuffled_table
from pallas_kernels import KVCache, attention_counters
from tokenspeed.engine import generation
from tokenspeed.engine.generation import Generation, Weights
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.kv_dtypes import AUTO, KVDtypes, parse
from tokenspeed.models.memory import decode_bytes
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.sampling.state import make_state
from tokenspeed.weights.random import random_model

SLOTS = 128
"""The capacity of a cache is a multiple of this, the largest block of keys: the end of a cache then needs no mask."""
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


def mean_bytes(config: ModelConfig, dtype: Any, *, batch: int, context: int, steps: int, kv_dtype: str = AUTO) -> float:
    """What a step must read, on average over `steps` of them behind `context` positions."""
    seen, kv = range(context + 1, context + steps + 1), parse("kv_dtype", kv_dtype, dtype)
    return statistics.fmean(decode_bytes(config, dtype=dtype, context=keys, batch=batch, kv=kv) for keys in seen)


class Decoder:
    """A model of random weights on the device."""

    def __init__(self, config: ModelConfig, dtype: Any, seed: int):
        self.config, self.dtype, self.seed = config, dtype, seed
        self.weights = Weights.of(random_model(config, dtype, seed))


class Workload:
    """Batches of sequences of a decoder that all start at the same position, and the programs that decode them.

    Attributes:
        capacity: positions that the cache holds of a sequence. kv: what it is stored in.
        page_table: int32 [B, pages of a sequence], whose pages lie in no order; None for contiguous caches.
    """

    def __init__(
        self, decoder: Decoder, *, batch: int, context: int, steps: int, page_size: int = 0, kv_dtype: str = AUTO
    ):
        self.decoder, self.batch, self.context, self.steps = decoder, batch, context, steps
        self.kv = parse("kv_dtype", kv_dtype, decoder.dtype)
        self._slots = -(-(context + steps) // SLOTS) * SLOTS
        pages = pages_of(self._slots, page_size)
        self.capacity = pages * (page_size or self._slots)
        self.page_table = None
        if page_size:
            self.page_table = shuffled_table(jax.random.key(np.uint32(decoder.seed)), batch, pages)
        self.rope = decoder.weights.model.rope_tables(self.capacity)
        self._sampling = make_state([GREEDY] * batch, [[0]] * batch, decoder.config.vocab_size, ())

    def fresh(self, sequence: int) -> Generation:
        """The `sequence`-th batch: a random cache and a random token to go on from.

        The same for the same number, whatever the size of a page. One of them is on the device at a time where a
        program took the last: states are donated.
        """
        c, context = self.decoder.config, np.int32(self.context)
        key = functools.partial(_key, np.uint32(self.decoder.seed), np.uint32(sequence))
        shape = self.batch, c.num_kv_heads, self._slots, c.head_dim
        return Generation(
            caches=[
                _random_cache(key(layer), context, self.page_table, shape, self.capacity, self.kv)
                for layer in range(c.num_layers)
            ],
            hidden=jnp.zeros((self.batch, c.d_model), jnp.float32),
            sampling=jax.tree.map(jnp.copy, self._sampling),
            **_random_start(key(c.num_layers), context, self.batch, c.num_kv_heads, c.vocab_size),
        )

    def programs(self, names: Sequence[str], compilations: int = 1) -> dict[str, list[Callable | Exception]]:
        """`compiled` of each name, so many times, side by side, or why there is none."""

        def attempt(name: str) -> Callable | Exception:
            try:
                return self.compiled(name)
            except Exception as error:
                return error

        found = compile_all([functools.partial(attempt, name) for name in names for _ in range(compilations)])
        return {name: found[i * compilations : (i + 1) * compilations] for i, name in enumerate(names)}

    def compiled(self, implementation: str, options: dict[str, Any] | None = None) -> Callable:
        """The program (weights, state, rope) -> (state, Drawn), by XLA with options; the state is donated."""
        program = self.lowered(steps=self.steps, implementation=implementation).compile(compiler_options=options)
        return functools.partial(program, **self._paged) if self._paged else program

    def lowered(self, **how: Any) -> jax.stages.Lowered:
        """The program of `generation.decode_steps`, to which `how` goes; it takes the page table where there is one."""

        def run(weights, state, rope, **paged):
            return generation.decode_steps(weights, state, rope, logprobs=None, **paged, **how)

        state = jax.eval_shape(functools.partial(self.fresh, 0))
        return jax.jit(run, donate_argnums=1).lower(self.decoder.weights, state, self.rope, **self._paged)

    @property
    def _paged(self) -> dict[str, jax.Array]:
        return {} if self.page_table is None else dict(page_table=self.page_table)


@jax.jit
def _key(seed, sequence, number) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sequence), number)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _random_cache(key, context, page_table, shape: tuple[int, ...], capacity: int, kv: KVDtypes) -> KVCache:
    """Normal keys and values of unit scale, as RMSNorm and random weights give them: [B, K, S, H], or cut into pages.

    Of as many positions as a contiguous cache has, so that they are the same in pages of any size.
    """
    filled = jnp.arange(shape[2])[:, None] < context
    whole = random_cache(jax.eval_shape(lambda: KVCache.zeros(*shape, kv.k, v_dtype=kv.v)), key)
    # What no step may see is NaN: it would end in the logits, and those that are not finite are told.
    k, v = (jnp.where(filled, x, _unseen(x.dtype)) for x in (whole.k, whole.v))
    if page_table is not None:
        k, v = (_in_pages(x, page_table, capacity) for x in (k, v))
    return dataclasses.replace(whole, k=k, v=v)


def _unseen(dtype) -> jax.Array:
    """NaN, and of int8, which has none, the largest number."""
    return jnp.asarray(127 if dtype == jnp.int8 else jnp.nan, dtype)


def _in_pages(whole: jax.Array, page_table: jax.Array, capacity: int) -> jax.Array:
    """[B, K, S, H] as a pool [P, K, Z, H] of pages that lie where the table, which has every page, says."""
    batch, kv_heads, slots, head_dim = whole.shape
    pages = page_table.shape[1]
    whole = jnp.pad(whole, ((0, 0), (0, 0), (0, capacity - slots), (0, 0)), constant_values=_unseen(whole.dtype))
    cut = jnp.moveaxis(whole.reshape(batch, kv_heads, pages, capacity // pages, head_dim), 2, 1)
    return cut.reshape(-1, *cut.shape[2:])[jnp.argsort(page_table.reshape(-1))]


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _random_start(key, context, batch: int, kv_heads: int, vocabulary: int) -> dict[str, jax.Array]:
    return dict(
        counters=attention_counters(batch, kv_heads),
        token=jax.random.randint(key, (batch,), 0, vocabulary, jnp.int32),
        position=jnp.full((batch,), context, jnp.int32),
        step=jnp.zeros((batch,), jnp.int32),
        max_tokens=jnp.full((batch,), np.iinfo(np.int32).max, jnp.int32),
    )
