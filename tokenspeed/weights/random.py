"""Random weights: for measuring, and where a test needs any."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import pallas_kernels as pk
from tokenspeed.measure.available_memory import needing
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.decoder import INIT_SCALE, Llama, QuantisedLinear
from tokenspeed.weights.checkpoint import place
from tokenspeed.weights.quantised_entries import Quantised, stored, tied_head


def random_model(config: ModelConfig, dtype: Any, seed: int = 0) -> Llama:
    """A model as at the start of a training: norms of one, biases of zero, everything else normal.

    A parameter at a time, so that what is compiled is a small program for each shape, and not one for all of them.

    Raises:
        NotEnoughMemory: the weights take more than there is.
    """
    with needing(config.weights_bytes(jnp.dtype(dtype).itemsize), f"random weights in {jnp.dtype(dtype)}"):
        return jax.block_until_ready(_drawn(config, dtype, seed))


def described_model(config: ModelConfig, dtype: Any) -> Llama:
    """A model's shapes and dtypes: its parameters are `jax.ShapeDtypeStruct`s."""
    model = nnx.eval_shape(lambda: Llama(config, jnp.dtype(dtype), rngs=nnx.Rngs(0)))
    for number, entry in enumerate(_projections(config)):
        place(
            model,
            entry.path,
            QuantisedLinear(jax.eval_shape(_quantising(number, entry, dtype), jax.random.key(0)), config.quantisation),
        )
    table = jax.ShapeDtypeStruct((config.vocab_size, config.d_model), dtype)
    if (head := jax.eval_shape(functools.partial(tied_head, config), table)) is not None:
        model.head = QuantisedLinear(head, config.quantisation)
    return model


def _drawn(config: ModelConfig, dtype: Any, seed: int) -> Llama:
    model = nnx.eval_shape(lambda: Llama(config, jnp.dtype(dtype), rngs=nnx.Rngs(0)))
    root = jax.random.key(seed)
    for number, entry in enumerate(_projections(config)):
        place(model, entry.path, QuantisedLinear(_quantising(number, entry, dtype)(root), config.quantisation))

    def draw(number: int, path: Any, leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array):
            return leaf
        name = jax.tree_util.keystr(path)
        if "norm" in name:
            return jnp.ones(leaf.shape, leaf.dtype)
        if "bias" in name:
            return jnp.zeros(leaf.shape, leaf.dtype)
        return _normal(root, number, leaf.shape, leaf.dtype)

    leaves, tree = jax.tree_util.tree_flatten_with_path(model)
    model = jax.tree.unflatten(tree, [draw(number, *item) for number, item in enumerate(leaves)])
    if (head := tied_head(config, model.embedding[...])) is not None:
        model.head = QuantisedLinear(head, config.quantisation)
    return model


def _projections(config: ModelConfig) -> list[Quantised]:
    return [entry for entry in stored(config) if isinstance(entry, Quantised)]


def _quantising(number: int, entry: Quantised, dtype: Any) -> Callable[[jax.Array], pk.QuantisedWeight]:
    """Of a key the weight of the `number`-th entry."""
    how = dict(shape=entry.shape, dtype=jnp.dtype(dtype), scheme=entry.scheme)
    return functools.partial(_quantised, number=number, **how)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _normal(root, number, shape, dtype):
    normal = jax.random.normal(jax.random.fold_in(root, number), shape, jnp.float32)
    return (INIT_SCALE * normal).astype(dtype)


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "scheme"))
def _quantised(root, number, shape, dtype, scheme):
    values = INIT_SCALE * jax.random.normal(jax.random.fold_in(root, -1 - number), shape, jnp.float32)
    scale_dtype = jnp.bfloat16 if scheme.format != "fp8" or scheme.outputs == 1 else jnp.float32
    return pk.quantise(
        values, scheme.format, group=scheme.group, symmetric=not scheme.zeros, scale_dtype=scale_dtype, dtype=dtype
    )
