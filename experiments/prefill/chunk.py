"""The device time of a chunk of a long prompt, and of its parts alone: products, attention, gathers."""

import functools
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from experiments.bench.compiling import counted
from experiments.bench.device import reason_of
from experiments.bench.workload import Decoder, Workload
from experiments.prefill.found import Found, back_to_back, check_counting
from experiments.prefill.options import Case
from pallas_kernels import KVCache
from tokenspeed.engine import generation
from tokenspeed.engine.generation import LAUNCHED_ONE_BY_ONE, Weights
from tokenspeed.models.flash_attention import attend_behind
from tokenspeed.models.prefill_attention import attend, before_chunk, window_that_counts

alone = functools.partial(jax.jit, compiler_options=LAUNCHED_ONE_BY_ONE)
"""As prefill is compiled."""
Pair = tuple[jax.Array, jax.Array]


def measure(decoder: Decoder, case: Case, *, implementation: str, prefill_backend: str, samples: int) -> Found:
    """`samples` times of one chunk, on a random cache with NaN where it will stand, and then of its parts.

    Void where its residual stream is not finite or something was compiled while it was timed.
    """
    found = Found()
    try:
        check_counting()
        workload = Workload(decoder, batch=case.batch, context=case.start, steps=case.tokens)
        vocabulary = decoder.config.vocab_size
        operands = (
            jax.random.randint(jax.random.key(decoder.seed), (case.batch, case.tokens), 0, vocabulary, jnp.int32),
            jnp.int32(case.start),
            jnp.full((case.batch,), case.start + case.tokens, jnp.int32),
        )

        def prefill(state):
            return generation.prefill(
                decoder.weights, state, *operands, workload.rope,
                capacity=workload.capacity, prefill_backend=prefill_backend, implementation=implementation,
            )  # fmt: skip

        state = prefill(prefill(workload.fresh(0)))  # compiles it, once for a state of its own making
        programs = parts(decoder, case, state.caches, prefill_backend=prefill_backend, capacity=workload.capacity)
        for program in programs.values():
            jax.block_until_ready(program(state.caches))
        with counted() as compiled:
            for _ in range(samples):
                state, ms = back_to_back(prefill, state)
                found.ms.append(ms)
            for name, program in programs.items():
                caches = state.caches
                times = [back_to_back(lambda _: program(caches), None)[1] for _ in range(samples)]
                setattr(found, name, statistics.median(times))
        if compiled:
            found.void("something was compiled during timing")
        if not bool(jnp.isfinite(state.hidden).all()):
            found.void("a residual stream that is not finite")
    except Exception as error:
        found.failure = f"running failed: {reason_of(error)}"
    return found


def parts(
    decoder: Decoder, case: Case, caches: list[KVCache], *, prefill_backend: str, capacity: int
) -> dict[str, Callable[[list[KVCache]], jax.Array]]:
    """Programs of a chunk's parts, by the fields of Found, of caches like these.

    XLA's attention reads a contiguous cache where it lies: with it there is no gather.
    """
    c, dtype = decoder.config, decoder.dtype
    start = jnp.full((case.batch,), case.start, jnp.int32)
    windows = tuple(window_that_counts(layer.window, capacity) for layer in c.layers)

    def rows(number, *shape):
        return jax.random.normal(jax.random.key(number), (case.batch, case.tokens, *shape), dtype)

    inputs = rows(0, c.d_model), rows(1, c.num_heads * c.head_dim), rows(2, c.d_ff)
    q, k, v = (rows(3 + i, n, c.head_dim) for i, n in enumerate((c.num_heads, c.num_kv_heads, c.num_kv_heads)))
    found: dict[str, Callable] = dict(products_ms=lambda caches: products(decoder.weights, *inputs))
    if prefill_backend == "cudnn":
        before = {
            window: gathered(caches[0], start, window=window, capacity=capacity) for window in dict.fromkeys(windows)
        }
        arrays = list(before.values())
        numbers = tuple(list(before).index(window) for window in windows)
        found["attention_ms"] = lambda caches: attention_behind(
            q, k, v, arrays, start, windows=windows, numbers=numbers
        )
        found["gather_ms"] = lambda caches: gathers(caches, start, windows=windows, capacity=capacity)
    else:
        positions = start[:, None] + jnp.arange(case.tokens, dtype=jnp.int32)
        found["attention_ms"] = lambda caches: attention_of_blocks(
            q, caches[0].k, caches[0].v, positions, windows=windows
        )
    return found


@alone
def products(weights: Weights, x: jax.Array, mixed: jax.Array, product: jax.Array) -> jax.Array:
    """All products of all layers, on the same rows [B, T, .] in each; a number on which every result depends."""
    total = jnp.float32(0)
    for block in weights.model.blocks:
        for linear, rows in ((block.qkv, x), (block.out, mixed), (block.gate_up, x), (block.down, product)):
            total += _one_of(linear(rows).astype(rows.dtype))
    return total


@functools.partial(alone, static_argnames=("windows", "numbers"))
def attention_behind(
    q: jax.Array, k: jax.Array, v: jax.Array, before: list[Pair], start: jax.Array, *, windows: tuple, numbers: tuple
) -> jax.Array:
    """Flash attention of all layers, the result of each the queries of the next; `numbers` says whose `before`."""
    for window, number in zip(windows, numbers, strict=True):
        q = attend_behind(q, k, v, before[number], start, window=window)
    return q


@functools.partial(alone, static_argnames="windows")
def attention_of_blocks(q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array, *, windows: tuple) -> jax.Array:
    """XLA's attention of all layers, the result of each the queries of the next."""
    for window in windows:
        q = attend(q, k, v, positions, window=window)
    return q


@functools.partial(alone, static_argnames=("window", "capacity"))
def gathered(cache: KVCache, start: jax.Array, *, window: int | None, capacity: int) -> Pair:
    """What a layer's chunk finds before it."""
    return before_chunk(cache, start, window=window, capacity=capacity)


@functools.partial(alone, static_argnames=("windows", "capacity"))
def gathers(caches: list[KVCache], start: jax.Array, *, windows: tuple, capacity: int) -> jax.Array:
    """The gathers of all layers; a number on which every result depends."""
    total = jnp.float32(0)
    for cache, window in zip(caches, windows, strict=True):
        for found in before_chunk(cache, start, window=window, capacity=capacity):
            total += _one_of(found)
    return total


def _one_of(result: jax.Array) -> jax.Array:
    """A number of it, as float32: behind the barrier all of it is made."""
    return lax.optimization_barrier(result)[(0,) * result.ndim].astype(jnp.float32)
