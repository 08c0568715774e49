"""The scales of a KV cache in 8 bits: the checkpoint's, or found for int8 by a prefill when an engine is made."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tokenspeed.models.decoder import Llama, rotation
from tokenspeed.models.kv_dtypes import KVDtypes
from tokenspeed.models.prefill_attention import attend

TOKENS, SEED = 256, 0
"""Of the sequence that scales are found with: the same numbers for every model, but for its vocabulary."""
LARGEST_INT8 = 127
MARGIN = 1.25
"""How much larger than any key or value of that sequence the largest is that can be stored. On the model that ships, 1
and 2 lose four and two times as much, in KL divergence from the cache in float32."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVScales:
    """
    Attributes:
        k, v: float32 [L, K], by layer and kv head; None where keys or values are not in 8 bits.
    """

    k: jax.Array | None = None
    v: jax.Array | None = None

    def of_layer(self, i: int) -> dict[str, jax.Array | None]:
        """As `KVCache` takes them."""
        return {f"{name}_scale": None if x is None else x[i] for name, x in (("k", self.k), ("v", self.v))}


def scales_for(model: Llama, dtypes: KVDtypes) -> KVScales:
    """The scales of a cache of those dtypes: the checkpoint's where it has some of that format.

    Else 1 in fp8, whose numbers are as exact in any unit (scales found as those of int8 lose as much); and in int8 what
    fits the keys and values of one sequence, computed in the model's dtype, the same at every call.

    Raises:
        FloatingPointError: that sequence's keys or values are not finite.
    """
    given, measured, found = model.kv_scales, None, {}
    scheme = None if model.config.quantisation is None else model.config.quantisation.kv
    for name, format in zip("kv", dtypes.formats):
        if format is None:
            continue
        if given is not None and format == scheme:
            found[name] = getattr(given, name)
        elif format == "fp8":
            found[name] = jnp.ones((model.config.num_layers, model.config.num_kv_heads), jnp.float32)
        else:
            measured = measured or largest_of(model)
            largest = getattr(measured, name)
            found[name] = jnp.where(largest > 0, MARGIN / LARGEST_INT8 * largest, 1.0)
    return KVScales(**found)


def largest_of(model: Llama) -> KVScales:
    """By layer and kv head, how large a key and a value become in a sequence of TOKENS random tokens: float32 [L, K].

    Raises:
        FloatingPointError: they are not finite.
    """
    c = model.config
    tokens = np.random.default_rng(SEED).integers(0, c.vocab_size, min(TOKENS, c.max_positions), np.int32)
    if c.bos_id is not None:  # what a text begins with has larger keys than any other token
        tokens[0] = c.bos_id
    positions = jnp.arange(len(tokens), dtype=jnp.int32)[None]
    x, rope = model.embedding[...][tokens[None]], rotation(model.rope_tables(len(tokens)), positions)
    found = []
    for i, layer in enumerate(c.layers):
        x, *largest = _layer(model, model.blocks[i], x, rope, positions, window=layer.window)
        found.append(largest)
    k, v = (jnp.stack(by_layer) for by_layer in zip(*found, strict=True))
    if not (jnp.isfinite(k).all() and jnp.isfinite(v).all()):
        raise FloatingPointError("the model's keys and values are not finite")
    return KVScales(k=k, v=v)


@functools.partial(jax.jit, static_argnames="window")
def _layer(model, block, x, rope, positions, *, window):
    """(the residual stream [1, T, D] after a layer, its largest keys and values by kv head [K]); one program for all
    layers that are alike."""
    q, k, v = model.qkv(block, x, *rope)
    largest = [jnp.abs(one).max(axis=(0, 1, 3)).astype(jnp.float32) for one in (k, v)]
    k, v = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
    return model.rest(block, x, attend(q, k, v, positions, window=window)), *largest
