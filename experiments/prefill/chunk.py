"""The device time of a chunk of a long prompt, and of its parts alone: products, attention, gathers."""

import functools
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from experiments.bench.compiling import LAUNCHED_ONE_BY_ONE, counted
from experiments.bench.device import reason_of
from experiments.bench.workload import Decoder, Workload
from experiments.prefill.found import Found, back_to_back, check_counting
from experiments.prefill.options import Case
from pallas_kernels import KVCache, attention_counters
from tokenspeed.engine import decode
from tokenspeed.engine.batch import takes_decode_kernels
from tokenspeed.engine.generation import Weights
from tokenspeed.engine.sizes import PAGE_SIZE
from tokenspeed.models.flash_attention import attend_behind
from tokenspeed.models.prefill_attention import attend, before_chunk, of_sequences, window_that_counts

alone = functools.partial(jax.jit, compiler_options=LAUNCHED_ONE_BY_ONE)
"""As prefill is compiled."""
Pair = tuple[jax.Array, jax.Array]


def measure(decoder: Decoder, case: Case, *, implementation: str, prefill_backend: str, samples: int) -> Found:
    """`samples` times of one chunk, on random pages with NaN where it will stand, and then of its parts.

    Void where its residual stream is not finite or something was compiled while it was timed.
    """
    found = Found()
    try:
        check_counting()
        workload = Workload(decoder, batch=case.batch, context=case.start, steps=case.tokens, page_size=PAGE_SIZE)
        table, capacity = workload.page_table, workload.capacity
        assert table is not None
        vocabulary = decoder.config.vocab_size
        tokens = jax.random.randint(jax.random.key(decoder.seed), (case.batch, case.tokens), 0, vocabulary, jnp.int32)
        start = jnp.full((case.batch,), case.start, jnp.int32)

        def run(carry):
            return layers(
                decoder.weights, carry[0], tokens, start, workload.rope, table,
                capacity=capacity, prefill_backend=prefill_backend, implementation=implementation,
            )  # fmt: skip

        carry = run(run((workload.fresh(0).caches, None)))  # compiles it, once for caches of its own making
        programs = parts(decoder, case, carry[0], table, prefill_backend=prefill_backend, capacity=capacity)
        for program in programs.values():
            jax.block_until_ready(program(carry[0]))
        with counted() as compiled:
            for _ in range(samples):
                carry, ms = back_to_back(run, carry)
                found.ms.append(ms)
            for name, program in programs.items():
                caches = carry[0]
                times = [back_to_back(lambda _: program(caches), None)[1] for _ in range(samples)]
                setattr(found, name, statistics.median(times))
        if compiled:
            found.void("something was compiled during timing")
        if not bool(jnp.isfinite(carry[1]).all()):
            found.void("a residual stream that is not finite")
    except Exception as error:
        found.failure = f"running failed: {reason_of(error)}"
    return found


@functools.partial(alone, static_argnames=("capacity", "prefill_backend", "implementation"), donate_argnums=1)
def layers(
    weights: Weights,
    caches: list[KVCache],
    tokens: jax.Array,
    start: jax.Array,
    rope: Pair,
    page_table: jax.Array,
    *,
    capacity: int,
    prefill_backend: str,
    implementation: str,
) -> tuple[list[KVCache], jax.Array]:
    """All layers of a chunk, as the engine's `chunk` runs them, without its slots.

    Args:
        weights: of the model. caches: of each layer, a pool; donated. tokens: int32 [B, T].
        start: int32 [B], where they begin, the same in all. rope: from `Llama.rope_tables`.
        page_table: int32 [B, pages of a sequence]. capacity: static, a bound of the positions.
        prefill_backend, implementation: see `Llama.prefill`.

    Returns:
        (the caches, the residual stream of the last token of each, [B, D]).
    """
    model, (batch, length) = weights.model, tokens.shape
    positions = start[:, None] + jnp.arange(length, dtype=jnp.int32)
    if takes_decode_kernels(batch, length, implementation):
        counters = attention_counters(batch, model.config.num_kv_heads, length)
        _, x, caches, _ = decode.decode_layers(
            model, caches, tokens, positions, rope, page_table=page_table, counters=counters,
            implementation=implementation,
        )  # fmt: skip
        x = x.reshape(batch, length, -1)
    else:
        x, caches = model.prefill(
            caches, tokens, positions, rope, capacity=capacity, start=start, page_table=page_table,
            prefill_backend=prefill_backend, implementation=implementation,
        )  # fmt: skip
    return caches, x[:, -1]


def parts(
    decoder: Decoder, case: Case, caches: list[KVCache], page_table: jax.Array, *, prefill_backend: str, capacity: int
) -> dict[str, Callable[[list[KVCache]], jax.Array]]:
    """Programs of a chunk's parts, by the fields of Found, of caches like these, whose pages lie as the table says."""
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
            window: gathered(caches[0], start, page_table, window=window, capacity=capacity)
            for window in dict.fromkeys(windows)
        }
        arrays = list(before.values())
        numbers = tuple(list(before).index(window) for window in windows)
        found["attention_ms"] = lambda caches: attention_behind(
            q, k, v, arrays, start, windows=windows, numbers=numbers
        )
        found["gather_ms"] = lambda caches: gathers(caches, start, page_table, windows=windows, capacity=capacity)
    else:
        positions = start[:, None] + jnp.arange(case.tokens, dtype=jnp.int32)
        keys, values = sequences(caches[0], page_table, capacity=capacity)
        found["attention_ms"] = lambda caches: attention_of_blocks(q, keys, values, positions, windows=windows)
        found["gather_ms"] = lambda caches: gathers_of_sequences(caches, page_table, capacity=capacity)
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
def gathered(cache: KVCache, start: jax.Array, page_table: jax.Array, *, window: int | None, capacity: int) -> Pair:
    """What a layer's chunk finds before it, for flash attention."""
    return before_chunk(cache, start, cache.k.dtype, window=window, capacity=capacity, page_table=page_table)


@functools.partial(alone, static_argnames=("windows", "capacity"))
def gathers(
    caches: list[KVCache], start: jax.Array, page_table: jax.Array, *, windows: tuple, capacity: int
) -> jax.Array:
    """The gathers of all layers for flash attention; a number on which every result depends."""
    total = jnp.float32(0)
    for cache, window in zip(caches, windows, strict=True):
        for found in before_chunk(cache, start, cache.k.dtype, window=window, capacity=capacity, page_table=page_table):
            total += _one_of(found)
    return total


@functools.partial(alone, static_argnames="capacity")
def sequences(cache: KVCache, page_table: jax.Array, *, capacity: int) -> Pair:
    """What XLA's attention looks at in a layer: all slots of each sequence, those of the chunk among them."""
    return of_sequences(cache, len(page_table), page_table, capacity, cache.k.dtype)


@functools.partial(alone, static_argnames="capacity")
def gathers_of_sequences(caches: list[KVCache], page_table: jax.Array, *, capacity: int) -> jax.Array:
    """The gathers of all layers for XLA's attention; a number on which every result depends."""
    total = jnp.float32(0)
    for cache in caches:
        for found in of_sequences(cache, len(page_table), page_table, capacity, cache.k.dtype):
            total += _one_of(found)
    return total


def _one_of(result: jax.Array) -> jax.Array:
    """A number of it, as float32: behind the barrier all of it is made."""
    return lax.optimization_barrier(result)[(0,) * result.ndim].astype(jnp.float32)
