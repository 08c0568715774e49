"""Greedy decode in a loop on the device, as it is timed: a model of random weights, sequences of random caches.

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
from jax import lax

import pallas_kernels
from experiments.gpu import compile_all
from pallas_kernels import KVCache, attention_counters
from tokenspeed import decode
from tokenspeed.config import ModelConfig
from tokenspeed.memory import decode_bytes
from tokenspeed.model import Llama
from tokenspeed.random_model import random_model

SLOTS = 128
"""The capacity of a cache is a multiple of this, the largest block of keys: the end of a cache then needs no mask."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """B sequences under way, donated to the loop.

    Attributes:
        caches: of each layer, contiguous. counters: of attention, int32 [B, K].
        token: int32 [B], not yet in the cache. position: int32 [B], where it will stand.
    """

    caches: list[KVCache]
    counters: jax.Array
    token: jax.Array
    position: jax.Array


def loop(
    model: Llama,
    state: State,
    rope: tuple[jax.Array, jax.Array],
    *,
    steps: int,
    implementation: str,
    kernels: Any = pallas_kernels,
) -> tuple[State, jax.Array, jax.Array]:
    """`steps` greedy steps: (the state, the tokens int32 [steps, B], the logits float32 [B] of the last of them)."""

    start = state.position

    def step(i, carry):
        caches, counters, token, tokens, _ = carry
        # Not carried: XLA would keep a copy of it beside the next one, a launch more at every step.
        position = start + i
        with jax.named_scope("decode_step"):
            x, caches, counters = decode.decode_step(
                model, caches, token[:, None], position[:, None], rope,
                counters=counters, implementation=implementation, kernels=kernels,
            )  # fmt: skip
        with jax.named_scope("head_argmax"):
            token, logit = decode.greedy(model, x, implementation, kernels)
        return caches, counters, token, decode.with_row(tokens, i, token), logit

    batch = state.token.shape[0]
    nothing = jnp.zeros((steps, batch), jnp.int32), jnp.zeros((batch,), jnp.float32)
    carry = state.caches, state.counters, state.token, *nothing
    caches, counters, token, tokens, logit = lax.fori_loop(0, steps, step, carry)
    return State(caches=caches, counters=counters, token=token, position=start + steps), tokens, logit


def mean_bytes(config: ModelConfig, dtype: Any, *, batch: int, context: int, steps: int) -> float:
    """What a step must read, on average over `steps` of them behind `context` positions."""
    seen = range(context + 1, context + steps + 1)
    return statistics.fmean(decode_bytes(config, dtype=dtype, context=keys, batch=batch) for keys in seen)


class Decoder:
    """A model of random weights on the device."""

    def __init__(self, config: ModelConfig, dtype: Any, seed: int):
        self.config, self.dtype, self.seed = config, dtype, seed
        model = random_model(config, dtype, seed)
        # Flax walks a model in Python at every call: 1% of a small one's time. Its arrays in a list pass at once.
        self.weights, self._tree = jax.tree.flatten(model)

    def model(self, weights: list) -> Llama:
        """The model made of `weights`, in which the arrays may be traced."""
        return jax.tree.unflatten(self._tree, weights)


class Workload:
    """Batches of sequences of a decoder that all start at the same position, and the programs that decode them."""

    def __init__(self, decoder: Decoder, *, batch: int, context: int, steps: int):
        self.decoder, self.batch, self.context, self.steps = decoder, batch, context, steps
        self.capacity = -(-(context + steps) // SLOTS) * SLOTS
        self.rope = decoder.model(decoder.weights).rope_tables(self.capacity)

    def fresh(self, sequence: int) -> State:
        """The `sequence`-th batch: a random cache and a random token to go on from. The same for the same number."""
        c, context = self.decoder.config, np.int32(self.context)
        key = functools.partial(_key, np.uint32(self.decoder.seed), np.uint32(sequence))
        shape = self.batch, c.num_kv_heads, self.capacity, c.head_dim
        return State(
            caches=[_random_cache(key(layer), context, shape, self.decoder.dtype) for layer in range(c.num_layers)],
            **_random_start(key(c.num_layers), context, self.batch, c.num_kv_heads, c.vocab_size),
        )

    def programs(self, names: Sequence[str], compilations: int = 1) -> dict[str, list[Callable | Exception]]:
        """`compiled` of each name, so many times, side by side, or why there is none."""

        def attempt(name: str) -> Callable | Exception:
            try:
                return self.compiled(name)
            except Exception as error:
                return error

        found = compile_all([functools.partial(attempt, name) for name in names for _ in range(compilations)], 0)
        return {name: found[i * compilations : (i + 1) * compilations] for i, name in enumerate(names)}

    def compiled(self, implementation: str, options: dict[str, Any] | None = None) -> Callable:
        """The program (weights, state, rope) -> what `loop` returns, by XLA with options; the state is donated."""

        return self.lowered(steps=self.steps, implementation=implementation).compile(compiler_options=options)

    def lowered(self, **how: Any) -> jax.stages.Lowered:
        """The program of `loop`, to which `how` goes."""

        def run(weights, state, rope):
            return loop(self.decoder.model(weights), state, rope, **how)

        state = jax.eval_shape(functools.partial(self.fresh, 0))
        return jax.jit(run, donate_argnums=1).lower(self.decoder.weights, state, self.rope)


@jax.jit
def _key(seed, sequence, number) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sequence), number)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _random_cache(key, context, shape: tuple[int, ...], dtype: Any) -> KVCache:
    """Normal keys and values of unit scale, as RMSNorm and random weights give them."""
    filled = jnp.arange(shape[2])[:, None] < context
    # What no step may see is NaN: it would end in the logits, which are looked at.
    k, v = (jnp.where(filled, jax.random.normal(one, shape, dtype), jnp.nan) for one in jax.random.split(key))
    return KVCache(k=k, v=v)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _random_start(key, context, batch: int, kv_heads: int, vocabulary: int) -> dict[str, jax.Array]:
    return dict(
        counters=attention_counters(batch, kv_heads),
        token=jax.random.randint(key, (batch,), 0, vocabulary, jnp.int32),
        position=jnp.full((batch,), context, jnp.int32),
    )
