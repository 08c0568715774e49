"""The calls of the ops that a decode step makes, recorded from the step itself: what is measured is what it runs.

`decode_step` takes its kernels from a namespace; here one stands in that notes each call and gives what the reference
would, while the step is traced and nothing runs.
"""

import collections
import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels as pk
from experiments.bench import activations
from experiments.bench.models import config_of
from experiments.bench.pages import pages_of
from pallas_kernels import KVCache, attention_counters
from tokenspeed.engine import decode
from tokenspeed.models.kv_dtypes import AUTO, parse
from tokenspeed.weights.random import described_model

OPS = ("qkv", "attention", "out", "gate_up", "down", "head")
LAYER_OPS = OPS[:-1]
"""In the order of a layer."""
LAYERS = 3
"""Of the traced model: the first is different, since no kernel made its rows; the last is, by what follows it."""
BY_THE_KERNELS = "interpret"
"""The implementation that a step is traced for to see the kernels' calls: it makes them on any machine."""


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A call.

    Attributes:
        op: the function of pallas_kernels.
        arguments: by name, arrays as `jax.ShapeDtypeStruct`; without implementation, tiles and prefetch, which say how
            the call runs.
        context: positions of each sequence, those of the cache; its pages may have room for more.
    """

    op: str
    arguments: dict[str, Any]
    context: int

    @property
    def shape(self) -> Any:
        """The problem that tiles are for."""
        return pk.OPS[self.op].shape(**self.arguments)

    def cut(self, tiles: Any) -> "Recorded":
        """As the step makes it where the op has these tiles: with x in the form that they take.

        What they cannot make in fixed point they are not asked for, nor is the reference that they are judged by.
        """
        arguments = activations.as_taken(self.op, self.arguments, tiles)
        if "fixed_point" in arguments and not pk.makes_fixed_point(self.shape, tiles):
            del arguments["fixed_point"]
        return dataclasses.replace(self, arguments=arguments)

    @property
    def cost(self) -> pk.Cost:
        """The least that it must do; attention over as many keys as the context has."""
        arguments = self.arguments
        if "lengths" in arguments:
            arguments = arguments | dict(lengths=np.full(arguments["lengths"].shape, self.context))
        return pk.OPS[self.op].cost(**arguments)


class Recorder:
    """Stands in for pallas_kernels, in a step at the end of a context."""

    def __init__(self, context: int):
        self.calls: list[Recorded] = []
        self._context = context

    def fixed_point_bits(self, op: str, weight: pk.Weight, rows: int) -> int | None:
        """As of an op on vectors: what makes its activations is asked for them so."""
        return pk.fixed_point_bits(op, weight, rows, activations.VECTORS)

    def __getattr__(self, op: str) -> Any:
        function = getattr(pk, op)
        signature = inspect.signature(function)

        def call(*positional, **named):
            arguments = signature.bind(*positional, **named).arguments
            aside = ("implementation", "tiles", "prefetch", "prefetch_bytes")
            kept = {name: value for name, value in arguments.items() if name not in aside}
            self.calls.append(Recorded(op, jax.tree.map(_described, kept), self._context))
            return function(**kept, implementation="xla")

        return call


def _described(leaf: Any) -> Any:
    """An array's shape and dtype; what is no array stays."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf


@functools.cache
def calls_of_step(
    model: str, *, batch: int, context: int, dtype: str, implementation: str, page_size: int = 0, kv_dtype: str = AUTO
) -> tuple[Recorded, ...]:
    """All calls of a greedy decode step of a few layers of a model, in order.

    Args:
        model: a name of `models.MODELS`. dtype: as jax has it.
        context: positions that the caches hold of each sequence. implementation: that the step is made for.
        page_size: positions of a page of the caches, of which a page table says whose it is; 0 for contiguous caches.
        kv_dtype: what the caches are stored in, see `kind.KV_DTYPE`.
    """
    config = config_of(model)
    config = dataclasses.replace(config, layers=config.layers[:LAYERS])
    decoder = described_model(config, dtype)
    recorder = Recorder(context)
    pages, kv = pages_of(context, page_size), parse("kv_dtype", kv_dtype, dtype)

    def step(decoder, tokens, positions, counters, rope, page_table):
        sizes = batch * pages, config.num_kv_heads, page_size or context, config.head_dim
        x, _, _ = decode.decode_step(
            decoder, [KVCache.zeros(*sizes, kv.k, v_dtype=kv.v) for _ in config.layers], tokens, positions, rope,
            page_table=page_table, counters=counters, implementation=implementation, kernels=recorder,
        )  # fmt: skip
        return decode.greedy(decoder, x, implementation, recorder)

    where = jax.ShapeDtypeStruct((batch, 1), jnp.int32)
    counters = jax.eval_shape(functools.partial(attention_counters, batch, config.num_kv_heads))
    table = jax.ShapeDtypeStruct((context, config.head_dim // 2), jnp.float32)
    page_table = jax.ShapeDtypeStruct((batch, pages), jnp.int32) if page_size else None
    jax.eval_shape(step, decoder, where, where, counters, (table, table), page_table)
    return tuple(recorder.calls)


def call_of(
    op: str, model: str, *, batch: int, context: int, dtype: str, implementation: str, page_size: int = 0,
    kv_dtype: str = AUTO,
) -> Recorded:  # fmt: skip
    """The call of an op that a step makes most often; of equals the last. Arguments as in `calls_of_step`."""
    calls = calls_of_step(
        model, batch=batch, context=context, dtype=dtype, implementation=implementation, page_size=page_size,
        kv_dtype=kv_dtype,
    )  # fmt: skip
    mine = [call for call in calls if call.op == op]
    counts = collections.Counter(map(repr, mine))
    return max(reversed(mine), key=lambda call: counts[repr(call)])
