"""Arguments for every public function, drawn or as shapes only.

The CPU tests, the GPU tests and the ahead-of-time compiles all take their calls from here. What a kernel must not use
is NaN: keys and values beyond a row's length, before its window, or in pages that no sequence owns.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels as pk
from pallas_kernels.attention.tiles import AttentionShape
from pallas_kernels.common.deferred_norm import defer_norm
from pallas_kernels.common.stream_tiles import StreamShape

MODELS = {
    "llama-3.1-8b": dict(width=4096, heads=32, kv_heads=8, head_dim=128, features=14336, vocabulary=128256),
    "llama-3.2-1b": dict(width=2048, heads=32, kv_heads=8, head_dim=64, features=8192, vocabulary=128256),
}


class Values:
    """Draws arrays."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)

    def normal(self, *shape: int, dtype, scale: float = 1.0) -> jax.Array:
        return jnp.asarray((scale * self.random.standard_normal(shape, np.float32)).astype(jnp.dtype(dtype)))

    def given(self, array: np.ndarray, dtype=None) -> jax.Array:
        return jnp.asarray(array if dtype is None else array.astype(jnp.dtype(dtype)))

    def poison(self, array: jax.Array, keep: np.ndarray) -> jax.Array:
        """`array` with NaN, of int8 the largest, wherever `keep`, which broadcasts to it, is False."""
        bad = np.asarray(127 if array.dtype == jnp.int8 else np.nan, array.dtype)
        return jnp.asarray(np.where(keep, np.asarray(array), bad))

    def quantised(self, array: jax.Array, dtype) -> tuple[jax.Array, jax.Array | None]:
        """Keys or values [P, K, Z, H] as a cache of `dtype` holds them, with scales of 8 bits, which differ by head."""
        if jnp.dtype(dtype).itemsize > 1:
            return array.astype(dtype), None
        most = 127.0 if dtype == "int8" else 448.0
        scale = np.linspace(3.0, 5.0, array.shape[1], dtype=np.float32) / most
        whole = np.asarray(array).astype(np.float32) / scale[:, None, None]
        whole = np.clip(np.round(whole) if dtype == "int8" else whole, -most, most)
        return jnp.asarray(whole.astype(jnp.dtype(dtype))), jnp.asarray(scale)


class Shapes:
    """As `Values`, but makes `jax.ShapeDtypeStruct`s only."""

    random = np.random.default_rng(0)

    def normal(self, *shape: int, dtype, scale: float = 1.0) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def given(self, array: np.ndarray, dtype=None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype if dtype is None else dtype)

    def poison(self, array, keep):
        return array

    def quantised(self, array, dtype):
        scale = jax.ShapeDtypeStruct(array.shape[1:2], jnp.float32) if jnp.dtype(dtype).itemsize == 1 else None
        return jax.ShapeDtypeStruct(array.shape, dtype), scale


@functools.cache
def _jitted(function: Callable, implementation: str | None, tiles, *options: tuple[str, Any]) -> Callable:
    return jax.jit(functools.partial(function, **dict(options), implementation=implementation, tiles=tiles))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """A public function and its arguments.

    Attributes:
        arrays: the arguments that are arrays or pytrees of them, by name.
        options: the static ones, by name.
        shape: what the op's tiles are judged for.
    """

    function: Callable
    arrays: dict[str, Any]
    options: dict[str, Any]
    shape: StreamShape | AttentionShape

    def __call__(self, implementation: str | None, tiles=None, **arrays):
        return self.bind(implementation, tiles)(**(self.arrays | arrays))

    def bind(self, implementation: str | None, tiles=None) -> Callable:
        """The function of the arrays alone."""
        return functools.partial(self.function, **self.options, implementation=implementation, tiles=tiles)

    def jitted(self, implementation: str | None, tiles=None) -> Callable:
        """As `bind`, compiled in one piece: calls that differ in the arrays' numbers alone share the program."""
        return _jitted(self.function, implementation, tiles, *sorted(self.options.items()))

    def replace(self, **arrays) -> "Call":
        return dataclasses.replace(self, arrays=self.arrays | arrays)

    def set(self, **options) -> "Call":
        return dataclasses.replace(self, options=self.options | options)


def _weight(draw, *outputs: int, inputs: int, dtype, bias: bool, rotary_dim: int | None = None) -> pk.DenseWeight:
    """Scaled so that a projection of unit numbers gives unit numbers."""
    return pk.DenseWeight(
        values=draw.normal(*outputs, inputs, dtype=dtype, scale=inputs**-0.5),
        bias=draw.normal(*outputs, dtype=dtype) if bias else None,
        rotary_dim=rotary_dim,
    )


def _norm(draw, size: int, dtype, offset: float):
    """A norm's weight such that weight + offset is about 1."""
    return draw.given(1.0 - offset + 0.2 * draw.random.standard_normal(size, np.float32), dtype)


def projection(
    draw,
    function=pk.down,
    *,
    rows: int,
    outputs: int,
    inputs: int,
    dtype="bfloat16",
    bias=False,
    residual=True,
    out_dtype=None,
    norm=False,
    norm_offset=0.0,
) -> Call:
    """Arguments of `out` or `down`; where the sum is float32, so is the residual, as what it comes from returns it.

    With `norm`, the results are the rows of the deferred norm, their sums of squares [B], and the sum.
    """
    return Call(
        function=_summed(function) if norm else function,
        arrays=dict(
            x=draw.normal(rows, inputs, dtype=dtype),
            weight=_weight(draw, outputs, inputs=inputs, dtype=dtype, bias=bias),
            residual=draw.normal(rows, outputs, dtype="float32" if norm else out_dtype or dtype) if residual else None,
            norm=_norm(draw, outputs, dtype, norm_offset) if norm else None,
        ),
        options=dict(out_dtype=out_dtype, norm_offset=norm_offset),
        shape=StreamShape(rows=rows, outputs=outputs, inputs=inputs, dtype=dtype),
    )


def _summed(function: Callable) -> Callable:
    """`out` or `down` with a norm: how many parts the squares come in depends on the tiles, their sum does not."""

    @functools.wraps(function)
    def call(**arguments):
        rows, stream = function(**arguments)
        return rows.x, jnp.sum(rows.squares, axis=1), stream

    return call


def streamed(draw, call: Call) -> Call:
    """`call`, of an op that norms its rows, with those of a residual stream in float32, whatever the weight's dtype."""
    return call.replace(x=draw.normal(*call.arrays["x"].shape, dtype="float32", scale=3.0))


def deferred(draw, call: Call, part: int = 7) -> Call:
    """`call`, of an op that norms its rows, with the norm deferred: its weight in them, squares of `part` columns."""
    x, norm, offset = call.arrays["x"], call.arrays["norm"], call.options["norm_offset"]
    if isinstance(draw, Shapes):
        parts = -(-x.shape[1] // part)
        rows = pk.DeferredNorm(x=x, squares=jax.ShapeDtypeStruct((x.shape[0], parts), jnp.float32))
    else:
        rows = defer_norm(x, norm, offset, dtype=x.dtype, part=part)
    shape = dataclasses.replace(call.shape, norm=False)
    return dataclasses.replace(call.replace(x=rows, norm=None), shape=shape)


def gate_up(
    draw, *, rows: int, width: int, features: int, dtype="bfloat16", bias=False, activation="silu", norm_offset=0.0
) -> Call:
    """Arguments of `gate_up`."""
    return Call(
        function=pk.gate_up,
        arrays=dict(
            x=draw.normal(rows, width, dtype=dtype, scale=3.0),
            norm=_norm(draw, width, dtype, norm_offset),
            weight=_weight(draw, features, 2, inputs=width, dtype=dtype, bias=bias),
        ),
        options=dict(activation=activation, norm_offset=norm_offset),
        shape=StreamShape(rows=rows, outputs=features, inputs=width, groups=2, dtype=dtype, norm=True),
    )


def head(
    draw,
    function=pk.head_logits,
    *,
    rows: int,
    width: int,
    vocabulary: int,
    dtype="bfloat16",
    bias=False,
    soft_cap=None,
    norm_offset=0.0,
) -> Call:
    """Arguments of `head` or `head_logits`."""
    return Call(
        function=function,
        arrays=dict(
            x=draw.normal(rows, width, dtype=dtype, scale=3.0),
            norm=_norm(draw, width, dtype, norm_offset),
            weight=_weight(draw, vocabulary, inputs=width, dtype=dtype, bias=bias),
        ),
        options=dict(soft_cap=soft_cap, norm_offset=norm_offset),
        shape=StreamShape(rows=rows, outputs=vocabulary, inputs=width, dtype=dtype, norm=True),
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where sequences lie in a cache.

    Attributes:
        page_size: positions of a page; of the whole sequence where the cache is contiguous.
        pages: pages of a sequence, or None for a contiguous cache.
    """

    page_size: int
    pages: int | None = None

    @property
    def capacity(self) -> int:
        return self.page_size * (self.pages or 1)

    def place(self, draw, filled: np.ndarray) -> tuple[np.ndarray | None, int]:
        """(page table, pages in the cache) for sequences of `filled` positions each.

        Pages are permuted, two belong to nobody, and a sequence's pages past the filled ones are -1.
        """
        sequences = len(filled)
        if self.pages is None:
            return None, sequences
        table = np.full((sequences, self.pages), -1, np.int32)
        used = np.arange(self.pages) < -(-filled[:, None] // self.page_size)
        count = int(used.sum())
        table[used] = draw.random.permutation(count + 2)[:count]
        return table, count + 2


def _cache(draw, shape: tuple[int, ...], dtype, kv_dtypes, keep=None) -> pk.KVCache:
    """Of random keys and values, in `kv_dtypes` (of keys and of values; None for `dtype`), poisoned where not kept."""
    found = {}
    for name, own in zip("kv", kv_dtypes or (None, None)):
        stored, scale = draw.quantised(draw.normal(*shape, dtype=dtype), own or dtype)
        found[name] = stored if keep is None else draw.poison(stored, keep)
        found[f"{name}_scale"] = scale
    return pk.KVCache(**found)


def _rows_of_sequences(draw, rows: int, sequences: int, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """(sequence, position) of each row: distinct; rows of one sequence follow one another."""
    sequence = np.sort(np.arange(rows) % sequences)
    sequence = draw.random.permutation(sequences)[sequence]
    counts = np.bincount(sequence, minlength=sequences)
    if counts.max() > capacity:
        raise ValueError(f"{counts.max()} rows do not fit in a sequence of {capacity}")
    starts = draw.random.integers(0, capacity - counts + 1)
    rank = np.array([np.sum(sequence[:i] == sequence[i]) for i in range(rows)])
    return sequence.astype(np.int32), (starts[sequence] + rank).astype(np.int32)


def qkv(
    draw,
    *,
    rows: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    layout: Layout,
    sequences: int | None = None,
    padding: int = 0,
    dtype="bfloat16",
    rotary_dim: int | None = None,
    bias=False,
    qk_norm=False,
    norm_offset=0.0,
    kv_dtypes=None,
) -> Call:
    """Arguments of `qkv`: rows of `sequences` sequences (None: one each), the last `padding` of them at position -1.

    Args:
        rotary_dim: 0 for no rotation, None for all of the head.
        kv_dtypes: of keys and of values in the cache, each None for `dtype`; None for both.
    """
    sequences = rows if sequences is None else sequences
    sequence, position = _rows_of_sequences(draw, rows, sequences, layout.capacity)
    filled = np.zeros(sequences, np.int64)
    np.maximum.at(filled, sequence, position + 1)
    if padding:
        position[-padding:] = -1
    table, pages = layout.place(draw, filled)
    outputs = (heads + 2 * kv_heads) * head_dim // 2
    rotated = head_dim if rotary_dim is None else rotary_dim
    rope = None
    if rotated:
        frequencies = 10000.0 ** (-np.arange(rotated // 2) * 2 / rotated)
        angles = np.arange(layout.capacity)[:, None] * frequencies
        rope = tuple(draw.given(f(angles), "float32") for f in (np.cos, np.sin))
    cache = (pages, kv_heads, layout.page_size, head_dim)
    return Call(
        function=pk.qkv,
        arrays=dict(
            x=draw.normal(rows, width, dtype=dtype, scale=3.0),
            norm=_norm(draw, width, dtype, norm_offset),
            weight=_weight(draw, outputs, 2, inputs=width, dtype=dtype, bias=bias, rotary_dim=rotary_dim),
            cache=_cache(draw, cache, dtype, kv_dtypes),
            positions=draw.given(position),
            sequence=draw.given(sequence),
            page_table=None if table is None else draw.given(table),
            rope=rope,
            q_norm=_norm(draw, head_dim, dtype, norm_offset) if qk_norm else None,
            k_norm=_norm(draw, head_dim, dtype, norm_offset) if qk_norm else None,
        ),
        options=dict(norm_offset=norm_offset),
        shape=StreamShape(rows=rows, outputs=outputs, inputs=width, groups=2, dtype=dtype, norm=True),
    )


def attention(
    draw,
    *,
    rows: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    layout: Layout,
    sequences: int | None = None,
    padding: int = 0,
    dtype="bfloat16",
    scale=None,
    soft_cap=None,
    window=None,
    counters=False,
    tokens: int | None = None,
    lengths: np.ndarray | None = None,
    kv_dtypes=None,
) -> Call:
    """Arguments of `attention`: rows as in `qkv`, the padding ones of length 0.

    Args:
        tokens: of each row, as an axis of q, at positions that follow one another; None for one, without an axis.
        lengths: int32 [rows, tokens] in place of those.
        kv_dtypes: as in `qkv`.
    """
    sequences = rows if sequences is None else sequences
    room = layout.capacity - (tokens or 1) + 1
    sequence, position = _rows_of_sequences(draw, rows, sequences, room)
    by_token = (rows,) if tokens is None else (rows, tokens)
    if lengths is None:
        lengths = position.reshape(rows, 1) + 1 + np.arange(tokens or 1, dtype=np.int32)
        if padding:
            lengths[-padding:] = 0
    lengths = lengths.reshape(by_token)
    filled = np.zeros(sequences, np.int64)
    np.maximum.at(filled, sequence, lengths.reshape(rows, -1).max(axis=1))
    table, pages = layout.place(draw, filled)
    keep = np.zeros((pages, layout.page_size), bool)
    for index, of_row in zip(sequence, lengths.reshape(rows, -1)):
        for length in of_row:
            seen = np.arange(max(length - (window or layout.capacity), 0), length)
            owned = index if table is None else table[index, seen // layout.page_size]
            keep[owned, seen % layout.page_size] = True
    cache = (pages, kv_heads, layout.page_size, head_dim)
    k_dtype, v_dtype = kv_dtypes or (None, None)
    return Call(
        function=pk.attention,
        arrays=dict(
            q=draw.normal(*by_token, heads, head_dim, dtype=dtype),
            cache=_cache(draw, cache, dtype, kv_dtypes, keep[:, None, :, None]),
            lengths=draw.given(lengths),
            sequence=draw.given(sequence),
            page_table=None if table is None else draw.given(table),
            counters=draw.given(np.zeros((lengths.size, kv_heads), np.int32)) if counters else None,
        ),
        options=dict(scale=scale, soft_cap=soft_cap, window=window),
        shape=AttentionShape(
            rows=rows,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            context=layout.capacity,
            page_size=layout.page_size,
            dtype=dtype,
            tokens=tokens or 1,
            k_dtype=k_dtype,
            v_dtype=v_dtype,
        ),
    )


def of_model(
    draw, model: str, op: str, *, rows: int, dtype="bfloat16", context: int = 2048, page_size=64, tokens=None,
    kv_dtypes=None,
) -> Call:  # fmt: skip
    """The call of `op` in a decode step of a model with `rows` sequences; 'deferred_' before it for a deferred norm.

    Attention may take several tokens of each.
    """
    if op.startswith("deferred_"):
        whole = of_model(
            draw, model, op.removeprefix("deferred_"), rows=rows, dtype=dtype, context=context, page_size=page_size,
            kv_dtypes=kv_dtypes,
        )  # fmt: skip
        return deferred(draw, whole, part=4 if rows == 1 else 16)
    size = MODELS[model]
    width, wide = size["width"], size["heads"] * size["head_dim"]
    attends = dict(
        rows=rows,
        heads=size["heads"],
        kv_heads=size["kv_heads"],
        head_dim=size["head_dim"],
        layout=Layout(page_size, context // page_size),
        dtype=dtype,
        kv_dtypes=kv_dtypes,
    )
    match op:
        case "qkv":
            return qkv(draw, width=width, **attends)
        case "attention":
            return attention(draw, counters=True, tokens=tokens, **attends)
        case "out":
            return projection(draw, pk.out, rows=rows, outputs=width, inputs=wide, dtype=dtype)
        case "down":
            return projection(draw, pk.down, rows=rows, outputs=width, inputs=size["features"], dtype=dtype)
        case "gate_up":
            return gate_up(draw, rows=rows, width=width, features=size["features"], dtype=dtype)
        case "head" | "head_logits":
            return head(draw, getattr(pk, op), rows=rows, width=width, vocabulary=size["vocabulary"], dtype=dtype)
    raise ValueError(f"op: unknown, {op!r}")
