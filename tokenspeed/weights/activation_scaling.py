"""Activation-aware scaling (AWQ, Lin et al. 2023): input channels that matter are enlarged before weights are rounded.

A norm that is divided by a scale a channel, and the columns of the projections behind it multiplied by it, compute the
same; but a column's numbers are rounded with a smaller relative error. The scales are powers of the mean activations
over a text, and the exponent is the one with the least error of the projections' outputs.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from tokenspeed.models.config import ModelConfig
from tokenspeed.models.decoder import Block, Llama
from tokenspeed.models.prefill_attention import attend
from tokenspeed.models.quantisation import Scheme
from tokenspeed.weights.checkpoint import place
from tokenspeed.weights.entries import Entry, entries
from tokenspeed.weights.rounding import restored
from tokenspeed.weights.shards import Stored

EXPONENTS = np.arange(10, dtype=np.float32) / 10
"""0 leaves the weights as they are, so that no product's error grows on the text."""
SEQUENCES, LENGTH = 16, 256
"""Of the text that is run, at most."""
COMPARED = 512
"""Tokens, evenly spaced among them, whose outputs are compared."""
LEAST_TOKENS = 32


class Scaling(NamedTuple):
    """What takes the place of norms, by the tensors' names, and what columns of projections are multiplied by: [D]."""

    norms: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]


def sequences_of(ids: list[int], config: ModelConfig) -> np.ndarray:
    """Token ids of a text as int32 [B, T], what does not fill a sequence left out.

    Raises:
        ValueError: the text is too short, or has tokens that the model has not.
    """
    if len(ids) < LEAST_TOKENS:
        raise ValueError(f"text: expected at least {LEAST_TOKENS} tokens, got {len(ids)}")
    if max(ids) >= config.vocab_size:
        raise ValueError(f"text: expected tokens below {config.vocab_size}, got {max(ids)}")
    length = min(LENGTH, len(ids), config.max_positions)
    count = min(SEQUENCES, len(ids) // length)
    return np.array(ids[: count * length], np.int32).reshape(count, length)


def found(config: ModelConfig, tensors: dict[str, Stored], ids: np.ndarray, *, progress: bool = False) -> Scaling:
    """The scaling of each norm whose projections `config` quantises, by the activations of the model as it is.

    A layer at a time, in float32; ids: int32 [B, T].
    """
    assert config.quantisation is not None
    model = nnx.eval_shape(lambda: Llama(dataclasses.replace(config, quantisation=None), rngs=nnx.Rngs(0)))
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    cos, sin = (table[positions][:, :, None] for table in model.rope_tables(ids.shape[1]))
    by_path = {entry.path: entry for entry in entries(config)}
    x = jnp.asarray(tensors[by_path["embedding",].parts[0].name].read()[ids], jnp.float32)
    scaling = Scaling({}, {})
    for number, layer in enumerate(tqdm(config.layers, desc="scaling", unit="layer", disable=not progress)):
        own = {path: entry for path, entry in by_path.items() if path[:2] == ("blocks", number)}
        for path, entry in own.items():
            place(model, path, entry.join(*(jnp.asarray(tensors[p.name].read(), jnp.float32) for p in entry.parts)))
        block = model.blocks[number]

        def scale(norm, projection, x, own=own, number=number, block=block):
            of_norm, of_weight = own["blocks", number, norm], own["blocks", number, projection, "values"]
            inputs = model.normed(x, getattr(block, norm)).reshape(-1, config.d_model)
            _scale(scaling, config, tensors, of_norm, of_weight, inputs)

        scale("attention_norm", "qkv", x)
        q, k, v = model.qkv(block, x, cos, sin)
        mixed = attend(q, jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2), positions, window=layer.window)
        scale("mlp_norm", "gate_up", x + block.out(mixed.reshape(*x.shape[:2], -1)))
        x = jax.block_until_ready(model.rest(block, x, mixed))
        model.blocks[number] = nnx.eval_shape(lambda: Block(config, jnp.float32, nnx.Rngs(0)))  # frees its weights
    return scaling


def _scale(scaling: Scaling, config: ModelConfig, tensors: Any, norm: Entry, weight: Entry, inputs: jax.Array) -> None:
    """Adds the scaling of a norm and of the projections behind it, where these are quantised."""
    assert config.quantisation is not None
    names = [part.name for part in weight.parts]
    scheme = config.quantisation.scheme_of(names[0].removesuffix(".weight"))
    if scheme is None:
        return
    values = jnp.concatenate([jnp.asarray(tensors[name].read(), jnp.float32) for name in names])
    compared = inputs[:: max(1, len(inputs) // COMPARED)]
    scales = jax.device_get(_best(values, inputs, compared, scheme, jnp.dtype(config.dtype)))
    name = norm.parts[0].name
    before = tensors[name].read()
    after = (before.astype(np.float32) / scales).astype(before.dtype)
    wide = after.astype(np.float32)
    kept = (wide == 0) | ~np.isfinite(wide)  # what has no such norm in its dtype stays as it is
    after = np.where(kept, before, after)
    columns = np.where(kept, 1.0, before.astype(np.float32) / np.where(kept, 1.0, wide))  # makes up for rounding
    scaling.norms[name] = after
    scaling.columns.update(dict.fromkeys(names, columns))


@functools.partial(jax.jit, static_argnames=("scheme", "dtype"))
def _best(values, inputs, compared, scheme: Scheme, dtype):
    """The scales [D] of the exponent with the least error; values [O, D], inputs and compared [tokens, D]."""
    mean = jnp.maximum(jnp.mean(jnp.abs(inputs), axis=0), 1e-4)

    def scales_of(exponent):
        scales = mean**exponent
        return scales / jnp.sqrt(jnp.max(scales) * jnp.min(scales))

    def error(exponent):
        scales = scales_of(exponent)
        weight = restored(
            values * scales, scheme.format, group=scheme.group, symmetric=not scheme.zeros, scale_dtype=dtype
        )
        return jnp.sum(jnp.square(compared @ (weight / scales - values).T))

    exponents = jnp.asarray(EXPONENTS)
    return scales_of(exponents[jnp.argmin(jax.lax.map(error, exponents))])
