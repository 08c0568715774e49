"""One case of an op: its operands, how to call it, how to chain calls, and what it costs.

Operands come in two parts: the state that a call passes on (activations, a cache it writes), and what it streams from
memory (a weight, or for attention the cache). A chain of calls rotates over several of the second, so that none is
found in the L2 cache, and each call waits for the one before it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import pallas_kernels as pk
from experiments.models import MODELS, ModelShape
from pallas_kernels.attention import cost as attention_cost
from pallas_kernels.attention import tiles as attention_tiles
from pallas_kernels.attention.tiles import AttentionShape
from pallas_kernels.common import tuned
from pallas_kernels.common.cost import Cost
from pallas_kernels.common.devices import Device
from pallas_kernels.common.tiles import StreamShape
from pallas_kernels.common.weighted import weigh
from pallas_kernels.gate_up import cost as gate_up_cost
from pallas_kernels.gate_up import tiles as gate_up_tiles
from pallas_kernels.head import cost as head_cost
from pallas_kernels.head import tiles as head_tiles
from pallas_kernels.projection import cost as projection_cost
from pallas_kernels.projection import tiles as projection_tiles
from pallas_kernels.qkv import cost as qkv_cost
from pallas_kernels.qkv import tiles as qkv_tiles

Tree = Any
QKV_CONTEXT = 128
"""Positions of the cache that the qkv case writes into; its size does not matter to the time."""
PART = 4
"""Columns that a part of the squares of weighted rows is of: what a program of `out` or `down` makes of one row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """An op at one problem size.

    Attributes:
        op: its name among `OPS`.
        tiles: the op's tiles module: Tiles, search_space(shape), feasible(tiles, shape, device), default, stand_ins.
        cost: bytes and operations of one call.
        state: key -> what a call passes on.
        streamed: key -> what a call reads from memory, anew for every call of a chain.
        call: (state, streamed, tiles, implementation) -> (result, next state).
        feeds_back: whether the next state holds what the call computed.
    """

    op: str
    model: str
    rows: int
    context: int
    dtype: str
    shape: StreamShape | AttentionShape
    tiles: Any
    cost: Cost
    state: Callable[[jax.Array], Tree]
    streamed: Callable[[jax.Array], Tree]
    call: Callable[[Tree, Tree, Any, str], tuple[Tree, Tree]]
    feeds_back: bool = True

    @property
    def function(self) -> str:
        """The public function that it calls, whose tiles it is about."""
        return FUNCTIONS.get(self.op, self.op)

    def chosen(self, device: Device) -> Any:
        """The tiles that a call without any runs with on that device."""
        op = self.tiles
        return tuned.choose(
            self.function, self.shape, device,
            kind=op.Tiles, default=op.default, feasible=op.feasible, stand_ins=op.stand_ins,
        )  # fmt: skip

    def chain(self, tiles: Any, implementation: str, passes: int = 1) -> Callable[[Tree, list[Tree]], Tree]:
        """A function of (state, list of streamed) that makes one dependent call for each, `passes` times over."""

        def once(state, streamed):
            results = []
            for item in streamed:
                result, state = self.call(state, item, tiles, implementation)
                # Waiting for a result alone keeps no call from being deleted; a result that is passed on does.
                state = lax.optimization_barrier((result, state))[1]
                if not self.feeds_back:
                    results.append(result)
            return state, results

        def run(state, streamed):
            results = jax.eval_shape(once, state, streamed)[1]
            carry = state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), results)
            return lax.fori_loop(0, passes, lambda _, carry: once(carry[0], streamed), carry)

        return run


def _normal(key, shape, dtype, scale=1.0):
    return (jax.random.normal(key, shape, jnp.float32) * scale).astype(dtype)


def _qkv(model: ModelShape, rows: int, context: int, dtype: str) -> dict[str, Any]:
    heads, kv_heads, head_dim, width = model.num_heads, model.num_kv_heads, model.head_dim, model.d_model
    outputs = (heads + 2 * kv_heads) * head_dim // 2
    shape = StreamShape(rows=rows, outputs=outputs, inputs=width, groups=2, dtype=dtype, norm=True)

    def state(key):
        keys = jax.random.split(key, 5)
        angles = jax.random.uniform(keys[0], (QKV_CONTEXT, head_dim // 2), maxval=6.3)
        cache_shape = rows, kv_heads, QKV_CONTEXT, head_dim
        return dict(
            x=_normal(keys[1], (rows, width), dtype),
            norm=1.0 + _normal(keys[2], (width,), dtype, 0.1),
            rope=(jnp.cos(angles), jnp.sin(angles)),
            positions=jnp.full((rows,), QKV_CONTEXT // 2, jnp.int32),
            cache=pk.KVCache(k=_normal(keys[3], cache_shape, dtype), v=_normal(keys[4], cache_shape, dtype)),
        )

    def streamed(key):
        return pk.DenseWeight(rows=_normal(key, (outputs, 2, width), dtype, width**-0.5))

    def call(state, weight, tiles, implementation):
        q, cache = pk.qkv(
            state["x"], state["norm"], weight, state["cache"], positions=state["positions"], rope=state["rope"],
            implementation=implementation, tiles=tiles,
        )  # fmt: skip
        return q, state | dict(cache=cache)

    cost = qkv_cost.cost(shape)
    return dict(shape=shape, tiles=qkv_tiles, cost=cost, state=state, streamed=streamed, call=call, feeds_back=False)


def _attention(model: ModelShape, rows: int, context: int, dtype: str) -> dict[str, Any]:
    heads, kv_heads, head_dim = model.num_heads, model.num_kv_heads, model.head_dim
    shape = AttentionShape(
        rows=rows, heads=heads, kv_heads=kv_heads, head_dim=head_dim, context=context, page_size=context, dtype=dtype
    )

    def state(key):
        return dict(
            q=_normal(key, (rows, heads, head_dim), dtype),
            lengths=jnp.full((rows,), context, jnp.int32),
            counters=pk.attention_counters(rows, kv_heads),
        )

    def streamed(key):
        size = rows, kv_heads, context, head_dim
        k, v = jax.random.split(key)
        return pk.KVCache(k=_normal(k, size, dtype), v=_normal(v, size, dtype))

    def call(state, cache, tiles, implementation):
        out, counters = pk.attention(
            state["q"], cache, lengths=state["lengths"], counters=state["counters"],
            implementation=implementation, tiles=tiles,
        )  # fmt: skip
        return out, state | dict(q=out, counters=counters)

    cost = attention_cost.cost(shape, keys=context)
    return dict(shape=shape, tiles=attention_tiles, cost=cost, state=state, streamed=streamed, call=call)


def _projection(op: str, inputs: int, outputs: int, rows: int, dtype: str) -> dict[str, Any]:
    shape = StreamShape(rows=rows, outputs=outputs, inputs=inputs, dtype=dtype)
    function = {"out": pk.out, "down": pk.down}[op]

    def state(key):
        x, residual = jax.random.split(key)
        return dict(x=_normal(x, (rows, inputs), dtype), residual=_normal(residual, (rows, outputs), dtype))

    def streamed(key):
        return pk.DenseWeight(rows=_normal(key, (outputs, inputs), dtype, inputs**-0.5))

    def call(state, weight, tiles, implementation):
        y = function(state["x"], weight, residual=state["residual"], implementation=implementation, tiles=tiles)
        return y, state | dict(residual=y)

    cost = projection_cost.cost(shape)
    return dict(shape=shape, tiles=projection_tiles, cost=cost, state=state, streamed=streamed, call=call)


def _out(model, rows, context, dtype):
    return _projection("out", model.num_heads * model.head_dim, model.d_model, rows, dtype)


def _down(model, rows, context, dtype):
    return _projection("down", model.d_ff, model.d_model, rows, dtype)


def _normed(width: int, rows: int, dtype: str) -> Callable[[jax.Array], Tree]:
    def state(key):
        x, norm = jax.random.split(key)
        return dict(x=_normal(x, (rows, width), dtype), norm=1.0 + _normal(norm, (width,), dtype, 0.1))

    return state


def _gate_up(model, rows, context, dtype):
    width, hidden = model.d_model, model.d_ff
    shape = StreamShape(rows=rows, outputs=hidden, inputs=width, groups=2, dtype=dtype, norm=True)

    def streamed(key):
        return pk.DenseWeight(rows=_normal(key, (hidden, 2, width), dtype, width**-0.5))

    def call(state, weight, tiles, implementation):
        y = pk.gate_up(state["x"], state["norm"], weight, implementation=implementation, tiles=tiles)
        return y, state

    cost = gate_up_cost.cost(shape)
    state = _normed(width, rows, dtype)
    return dict(
        shape=shape, tiles=gate_up_tiles, cost=cost, state=state, streamed=streamed, call=call, feeds_back=False
    )


def _head(model, rows, context, dtype):
    width, vocab = model.d_model, model.vocab
    shape = StreamShape(rows=rows, outputs=vocab, inputs=width, dtype=dtype, norm=True)

    def streamed(key):
        return pk.DenseWeight(rows=_normal(key, (vocab, width), dtype, width**-0.5))

    def call(state, weight, tiles, implementation):
        best = pk.head(state["x"], state["norm"], weight, implementation=implementation, tiles=tiles)
        return best, state

    cost = head_cost.cost(shape)
    state = _normed(width, rows, dtype)
    return dict(shape=shape, tiles=head_tiles, cost=cost, state=state, streamed=streamed, call=call, feeds_back=False)


def _weighted(build: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The same op with rows that have the norm's weight in them, as it comes in a decode step."""

    def built(model, rows, context, dtype):
        parts = build(model, rows, context, dtype)

        def state(key):
            whole = parts["state"](key)
            return whole | dict(x=weigh(whole["x"], whole["norm"], 0.0, dtype=dtype, part=PART), norm=None)

        return parts | dict(shape=dataclasses.replace(parts["shape"], norm=False), state=state)

    return built


WEIGHTED = {"qkv": "weighted_qkv", "gate_up": "weighted_gate_up"}
"""The ops that come with weighted rows in a decode step, and those cases of them."""
OPS = {
    "qkv": _qkv, "attention": _attention, "out": _out, "gate_up": _gate_up, "down": _down, "head": _head,
    "weighted_qkv": _weighted(_qkv), "weighted_gate_up": _weighted(_gate_up),
}  # fmt: skip
FUNCTIONS = {case: op for op, case in WEIGHTED.items()}
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def make(op: str, model: str, *, rows: int = 1, context: int = 1024, dtype: str = "bf16") -> Case:
    """The case of `op` at the sizes of `model`; `context` matters to attention alone."""
    built = OPS[op](MODELS[model], rows, context, DTYPES[dtype])
    return Case(op=op, model=model, rows=rows, context=context, dtype=dtype, **built)


def fields_of(tiles: Any) -> dict[str, Any]:
    """The tiles as rows and tuned files have them: `programs` only where they are named, as in those of before."""
    fields = dataclasses.asdict(tiles)
    if not fields.get("programs"):
        fields.pop("programs", None)
    return fields
