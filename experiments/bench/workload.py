"""Whole decode steps as they are timed: a model of random weights, sequences of random caches, the engine's own loop.

A step is all that a token depends on: the embedding of the last token, every layer, the head, the argmax, the next
position. Steps follow each other in one program of a static trip count, so the host starts one call for all of them.
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.compiling import compile_all
from pallas_kernels import KVCache, attention_counters
from tokenspeed.engine import generation
from tokenspeed.engine.generation import Generation, Weights
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.memory import decode_bytes
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.sampling.state import make_state
from tokenspeed.weights.random import random_model

SLOTS = 128
"""The capacity of a cache is a multiple of this, the largest block of keys: the end of a cache then needs no mask."""
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


def mean_bytes(config: ModelConfig, dtype: Any, *, batch: int, context: int, steps: int) -> float:
    """What a step must read, on average over `steps` of them behind `context` positions."""
    seen = range(context + 1, context + steps + 1)
    return statistics.fmean(decode_bytes(config, dtype=dtype, context=keys, batch=batch) for keys in seen)


class Decoder:
    """A model of random weights on the device."""

    def __init__(self, config: ModelConfig, dtype: Any, seed: int):
        self.config, self.dtype, self.seed = config, dtype, seed
        self.weights = Weights.of(random_model(config, dtype, seed))


class Workload:
    """Batches of sequences of a decoder that all start at the same position, and the programs that decode them."""

    def __init__(self, decoder: Decoder, *, batch: int, context: int, steps: int):
        self.decoder, self.batch, self.context, self.steps = decoder, batch, context, steps
        self.capacity = -(-(context + steps) // SLOTS) * SLOTS
        self.rope = decoder.weights.model.rope_tables(self.capacity)
        self._sampling = make_state([GREEDY] * batch, [[0]] * batch, decoder.config.vocab_size, ())

    def fresh(self, sequence: int) -> Generation:
        """The `sequence`-th batch: a random cache and a random token to go on from. The same for the same number."""
        c, context = self.decoder.config, np.int32(self.context)
        key = functools.partial(_key, np.uint32(self.decoder.seed), np.uint32(sequence))
        shape = self.batch, c.num_kv_heads, self.capacity, c.head_dim
        return Generation(
            caches=[_random_cache(key(layer), context, shape, self.decoder.dtype) for layer in range(c.num_layers)],
            hidden=jnp.zeros((self.batch, c.d_model), self.decoder.dtype),
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
        return self.lowered(steps=self.steps, implementation=implementation).compile(compiler_options=options)

    def lowered(self, **how: Any) -> jax.stages.Lowered:
        """The program of `generation.decode_steps`, to which `how` goes."""

        def run(weights, state, rope):
            return generation.decode_steps(weights, state, rope, logprobs=None, **how)

        state = jax.eval_shape(functools.partial(self.fresh, 0))
        return jax.jit(run, donate_argnums=1).lower(self.decoder.weights, state, self.rope)


@jax.jit
def _key(seed, sequence, number) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sequence), number)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _random_cache(key, context, shape: tuple[int, ...], dtype: Any) -> KVCache:
    """Normal keys and values of unit scale, as RMSNorm and random weights give them."""
    filled = jnp.arange(shape[2])[:, None] < context
    # What no step may see is NaN: it would end in the logits, and those that are not finite are told.
    k, v = (jnp.where(filled, jax.random.normal(one, shape, dtype), jnp.nan) for one in jax.random.split(key))
    return KVCache(k=k, v=v)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _random_start(key, context, batch: int, kv_heads: int, vocabulary: int) -> dict[str, jax.Array]:
    return dict(
        counters=attention_counters(batch, kv_heads),
        token=jax.random.randint(key, (batch,), 0, vocabulary, jnp.int32),
        position=jnp.full((batch,), context, jnp.int32),
        step=jnp.zeros((batch,), jnp.int32),
        max_tokens=jnp.full((batch,), np.iinfo(np.int32).max, jnp.int32),
    )
