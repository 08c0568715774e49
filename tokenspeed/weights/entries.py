"""What a checkpoint of the LLaMA kinds holds: the tensors of each parameter, and how these are made of them."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels import DenseWeight, pack_gate_up, pack_qkv, unpack_gate_up, unpack_qkv
from tokenspeed.models.config import ModelConfig

DTYPES = ("F32", "BF16", "F16", "F64")
"""Of stored weights that are not quantised, as safetensors calls them."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A tensor of the checkpoint: its name, its shape, and dtypes that it may have."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = DTYPES


@dataclasses.dataclass(frozen=True)
class Entry:
    """A parameter of the model and the tensors that it is made of.

    Attributes:
        path: where it is in the model: attribute names and indices.
        parts: the tensors. join: makes the parameter of them; split: the inverse.
    """

    path: tuple[str | int, ...]
    parts: tuple[Part, ...]
    join: Callable[..., jax.Array]
    split: Callable[[jax.Array], tuple[jax.Array, ...]]


def same(x):
    return x


def _one(path: tuple, name: str, shape: tuple[int, ...]) -> Entry:
    return Entry(path, (Part(name, shape),), same, lambda x: (x,))


def entries(config: ModelConfig) -> list[Entry]:
    """Every parameter of a model of that config, with the names that Hugging Face's LLaMA kinds give its tensors."""
    c = config
    heads, width = (c.num_heads, c.num_kv_heads, c.num_kv_heads), c.d_model

    def in_heads(x, count):
        return x.reshape(count, c.head_dim, *x.shape[1:])

    def join_qkv(*parts):
        return pack_qkv(*(jnp.moveaxis(in_heads(x, n), -1, 0) for x, n in zip(parts, heads))).values

    def split_qkv(values):
        parts = unpack_qkv(DenseWeight(values=values), c.num_heads, c.num_kv_heads)[:3]
        return tuple(jnp.moveaxis(x, 0, -1).reshape(-1, width) for x in parts)

    def join_qkv_bias(*parts):
        zeros = (jnp.zeros((1, n, c.head_dim), parts[0].dtype) for n in heads)
        return pack_qkv(*zeros, *(in_heads(x, n) for x, n in zip(parts, heads))).bias

    def split_qkv_bias(bias):
        zeros = jnp.zeros((*bias.shape, 1), bias.dtype)
        return tuple(
            x.reshape(-1) for x in unpack_qkv(DenseWeight(values=zeros, bias=bias), c.num_heads, c.num_kv_heads)[3:]
        )

    def join_gate_up(gate, up):
        return pack_gate_up(gate.T, up.T).values

    def split_gate_up(values):
        return tuple(x.T for x in unpack_gate_up(DenseWeight(values=values))[:2])

    def join_pair(one, other):
        return jnp.stack([one, other], axis=1)

    def split_pair(both):
        return both[:, 0], both[:, 1]

    found = [_one(("embedding",), "model.embed_tokens.weight", (c.vocab_size, width))]
    for i in range(c.num_layers):
        layer, block = f"model.layers.{i}.", ("blocks", i)
        attention, mlp = layer + "self_attn.", layer + "mlp."
        sizes = [n * c.head_dim for n in heads]

        def three(kind, layer=attention, sizes=sizes):
            tail = (width,) if kind == "weight" else ()
            return tuple(Part(f"{layer}{x}_proj.{kind}", (n, *tail)) for x, n in zip("qkv", sizes))

        def two(kind, layer=mlp):
            tail = (width,) if kind == "weight" else ()
            return tuple(Part(f"{layer}{x}_proj.{kind}", (c.d_ff, *tail)) for x in ("gate", "up"))

        found += [
            _one((*block, "attention_norm"), layer + "input_layernorm.weight", (width,)),
            Entry((*block, "qkv", "values"), three("weight"), join_qkv, split_qkv),
            _one((*block, "out", "values"), attention + "o_proj.weight", (width, sizes[0])),
            _one((*block, "mlp_norm"), layer + "post_attention_layernorm.weight", (width,)),
            Entry((*block, "gate_up", "values"), two("weight"), join_gate_up, split_gate_up),
            _one((*block, "down", "values"), mlp + "down_proj.weight", (width, c.d_ff)),
        ]
        if c.qkv_bias:
            found.append(Entry((*block, "qkv", "bias"), three("bias"), join_qkv_bias, split_qkv_bias))
        if c.out_bias:
            found.append(_one((*block, "out", "bias"), attention + "o_proj.bias", (width,)))
        if c.mlp_bias:
            found.append(Entry((*block, "gate_up", "bias"), two("bias"), join_pair, split_pair))
            found.append(_one((*block, "down", "bias"), mlp + "down_proj.bias", (width,)))
    found.append(_one(("norm",), "model.norm.weight", (width,)))
    if not c.tied:
        found.append(_one(("head", "values"), "lm_head.weight", (c.vocab_size, width)))
    return found
