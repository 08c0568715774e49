"""Random operands of a recorded call, in two parts: what it streams from memory, and the state that calls pass on.

A chain of calls rotates over several of what is streamed (a weight, or for attention the cache), so that none is found
in the L2 cache, and each call waits for the one before it.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

import pallas_kernels as pk
from experiments.bench.pages import shuffled_table
from experiments.bench.recorded import Recorded

Tree = Any
STANDARD_DEVIATIONS = 5
"""Of random numbers, that int8 holds: few are larger."""
NORMS = ("norm", "q_norm", "k_norm")


def streamed_name(call: Recorded) -> str:
    """The argument that is read from memory anew in every call of a chain."""
    return "cache" if call.op == "attention" else "weight"


def streamed(call: Recorded, key: jax.Array) -> Tree:
    """What a call streams: a weight scaled so that unit activations give unit results, or a cache of unit numbers."""
    name = streamed_name(call)
    return _drawn(name, call.arguments[name], key)


def state(call: Recorded, key: jax.Array) -> dict[str, Tree]:
    """The other arrays of a call, by argument."""
    names = [name for name, value in call.arguments.items() if name != streamed_name(call) and _has_arrays(value)]
    keys = jax.random.split(key, len(names))
    found = {name: _drawn(name, call.arguments[name], one) for name, one in zip(names, keys, strict=True)}
    if "positions" in found:
        found["positions"] = jnp.full_like(found["positions"], call.context - 1)
    if "lengths" in found:
        found["lengths"] = jnp.full_like(found["lengths"], call.context)
    return found


def feed(call: Recorded, state: dict[str, Tree], result: Tree) -> tuple[Tree, dict[str, Tree]]:
    """(what the call computed, the state of the next call), so that the next depends on this one where it can."""
    match call.op:
        case "qkv":
            return result[0], state | dict(cache=result[1])
        case "attention":
            out, counters = result
            following = dict(q=out) if feeds_back(call) else {}
            return out, state | following | dict(counters=counters)
        case "out" | "down":
            total = result[1] if call.arguments.get("norm") is not None else result
            return result, state | dict(residual=total)
    return result, state


def feeds_back(call: Recorded) -> bool:
    """Whether the next state holds what the call computed."""
    if call.op == "attention":
        return call.arguments.get("fixed_point") is None
    return call.op in ("out", "down")


def _has_arrays(value: Any) -> bool:
    return any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(value))


def _drawn(name: str, described: Any, key: jax.Array) -> Any:
    if isinstance(described, pk.DenseWeight):
        values, bias = jax.random.split(key)
        return pk.DenseWeight(
            values=_normal(values, described.values, described.shape[-1] ** -0.5),
            bias=None if described.bias is None else _normal(bias, described.bias),
        )
    if isinstance(described, pk.QuantisedWeight):
        return _quantised(described, key)
    if isinstance(described, pk.KVCache):
        return random_cache(described, key)
    if isinstance(described, pk.FixedPointRows):
        return _rounded_to(described, jax.random.normal(key, described.shape))
    if isinstance(described, pk.DeferredNorm):
        return _deferred(described, key)
    if name in NORMS:
        return (1.0 + 0.1 * jax.random.normal(key, described.shape)).astype(described.dtype)
    if name == "page_table":
        return shuffled_table(key, *described.shape)
    if name == "rope":
        angles = jax.random.uniform(key, described[0].shape, maxval=6.3)
        return jnp.cos(angles), jnp.sin(angles)
    keys = iter(jax.random.split(key, len(jax.tree.leaves(described))))
    return jax.tree.map(lambda leaf: _normal(next(keys), leaf), described)


@functools.partial(jax.jit, static_argnums=0)
def _quantised(described: pk.QuantisedWeight, key: jax.Array) -> pk.QuantisedWeight:
    """Of normal numbers as a weight has them."""
    values = described.shape[-1] ** -0.5 * jax.random.normal(key, described.shape, jnp.float32)
    return pk.quantise(
        values, described.format, group=described.group, symmetric=described.zeros is None,
        scale_dtype=described.scales.dtype, dtype=described.dtype, rotary_dim=described.rotary_dim,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def random_cache(described: pk.KVCache, key: jax.Array) -> pk.KVCache:
    """Keys and values of unit numbers; in int8 as many standard deviations as there are in a sequence are stored."""
    found = {}
    for name, one in zip("kv", jax.random.split(key), strict=True):
        stored, scale = getattr(described, name), getattr(described, f"{name}_scale")
        found[name] = jax.random.normal(one, stored.shape, jnp.float32)
        unit = STANDARD_DEVIATIONS / 127 if stored.dtype == jnp.int8 else 1.0
        found[f"{name}_scale"] = None if scale is None else jnp.full(scale.shape, unit, jnp.float32)
    like = dataclasses.replace(described, k_scale=found["k_scale"], v_scale=found["v_scale"])
    k, v = (jnp.moveaxis(found[name], 1, 2) for name in "kv")  # [P, Z, K, H]
    k, v = (jnp.moveaxis(x, 2, 1) for x in like.rounded(k, v))
    return dataclasses.replace(like, k=k, v=v)


def _deferred(described: pk.DeferredNorm, key: jax.Array) -> pk.DeferredNorm:
    """Rows with a norm's weight in them; what is known of their squares is spread evenly over the parts."""
    rows_key, weight_key = jax.random.split(key)
    rows = jax.random.normal(rows_key, described.x.shape)
    weight = 1.0 + 0.1 * jax.random.normal(weight_key, described.x.shape[-1:])
    whole = pk.defer_norm(rows, weight, dtype=jnp.float32, part=rows.shape[1])
    parts = described.squares.shape[1]
    return pk.DeferredNorm(
        x=_rounded_to(described.x, pk.to_floats(whole.x)),
        squares=jnp.broadcast_to(whole.squares / parts, described.squares.shape),
    )


def _rounded_to(described: Any, rows: jax.Array) -> jax.Array | pk.FixedPointRows:
    """Rows of float32 as such rows: of a float dtype, or in fixed point."""
    if not isinstance(described, pk.FixedPointRows):
        return rows.astype(described.dtype)
    return pk.to_fixed_point(rows, described.bits, dtype=described.dtype)


def _normal(key: jax.Array, described: jax.ShapeDtypeStruct, scale: float = 1.0) -> jax.Array:
    if jnp.issubdtype(described.dtype, jnp.integer):
        return jnp.zeros(described.shape, described.dtype)
    return (scale * jax.random.normal(key, described.shape, jnp.float32)).astype(described.dtype)
