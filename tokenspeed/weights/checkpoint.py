"""Checkpoints in the Hugging Face layout: read into the kernels' layout one tensor at a time, and written."""

import dataclasses
import functools
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from tqdm import tqdm

from pallas_kernels import DenseWeight, pack_gate_up, pack_qkv, unpack_gate_up, unpack_qkv
from tokenspeed.measure.available_memory import needing
from tokenspeed.messages import listed
from tokenspeed.models import hf_config
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.decoder import Llama
from tokenspeed.weights.shards import STALE, WEIGHTS, CheckpointError, Stored, opened

DTYPES = ("F32", "BF16", "F16", "F64")
"""Of stored weights, as safetensors calls them; others are quantised, and mean nothing without their scales."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A tensor of the checkpoint: its name and its shape."""

    name: str
    shape: tuple[int, ...]


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


def _same(x):
    return x


def _one(path: tuple, name: str, shape: tuple[int, ...]) -> Entry:
    return Entry(path, (Part(name, shape),), _same, lambda x: (x,))


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


def check(config: ModelConfig, tensors: dict[str, Stored]) -> None:
    """Raises one CheckpointError that lists the tensors that are missing, unexpected or of another shape or dtype."""
    wanted = {part.name: part.shape for entry in entries(config) for part in entry.parts}
    tied = {"lm_head.weight"} if config.tied else set()  # a tied head may be written out; the table counts
    found = {name: tensors[name] for name in wanted if name in tensors}
    shapes = {name: tensor.shape for name, tensor in found.items()}
    dtypes = {name: tensor.dtype for name, tensor in found.items()}
    problems = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [n for n in tensors if n not in wanted and n not in tied and not n.endswith(STALE)],
        "of another shape": [
            f"{n} {list(shape)} instead of {list(wanted[n])}" for n, shape in shapes.items() if shape != wanted[n]
        ],
        f"of another dtype than {', '.join(DTYPES)}": [
            f"{n} {dtype} in {found[n].file}" for n, dtype in dtypes.items() if dtype not in DTYPES
        ],
    }
    texts = [f"{kind}: {listed(names)}" for kind, names in problems.items() if names]
    if texts:
        raise CheckpointError(f"tensors {'; '.join(texts)}")


def load(
    folder: str | Path, config: ModelConfig | None = None, *, dtype: str | None = None, progress: bool = False
) -> Llama:
    """Loads a checkpoint folder, a tensor at a time, each to its place on the device in its final layout.

    Args:
        config: the folder's own, if None.
        dtype: of the weights on the device; the checkpoint's if None.
        progress: show a bar on standard error.

    Raises:
        ConfigError, CheckpointError: something is wrong with the folder; nothing stays loaded.
        NotEnoughMemory: the weights take more than there is.
    """
    config = hf_config.from_folder(folder) if config is None else config
    dtype = jnp.dtype(config.dtype if dtype is None else dtype)
    wanted = entries(config)
    with opened(folder) as tensors:
        check(config, tensors)
        largest = max(sum(math.prod(part.shape) for part in entry.parts) for entry in wanted)
        with needing((config.num_parameters + largest) * dtype.itemsize, f"{folder}: loading it in {dtype}"):
            model = nnx.eval_shape(lambda: Llama(config, dtype, rngs=nnx.Rngs(0)))
            for entry in tqdm(wanted, desc="loading", unit="tensor", disable=not progress, leave=False):
                parts = [jax.device_put(tensors[part.name].read()) for part in entry.parts]
                jax.block_until_ready(parts)  # so that no more than these wait in the host's memory
                place(model, entry.path, _joined(parts, dtype, entry.join))
    return model


def _joined(parts: list[jax.Array], dtype: Any, join: Callable[..., jax.Array]) -> jax.Array:
    if join is _same and parts[0].dtype == dtype:
        return parts[0]  # a program would copy it
    return _cast_and_joined(parts, dtype, join)


@functools.partial(jax.jit, static_argnames=("dtype", "join"))
def _cast_and_joined(parts, dtype, join):
    return join(*(part.astype(dtype) for part in parts))


def place(model: Llama, path: tuple[str | int, ...], value: jax.Array) -> None:
    """Puts a parameter into the model."""
    *way, last = path
    owner: Any = model
    for step in way:
        owner = owner[step] if isinstance(step, int) else getattr(owner, step)
    setattr(owner, last, nnx.Param(value))


def found_at(model: Llama, path: tuple[str | int, ...]) -> jax.Array:
    """A parameter of the model."""
    owner: Any = model
    for step in path:
        owner = owner[step] if isinstance(step, int) else getattr(owner, step)
    return owner[...]


def save(folder: str | Path, model: Llama, extra: dict[str, dict] | None = None) -> None:
    """Writes a model as model.safetensors in the Hugging Face layout; `extra` maps names of JSON files to contents.

    The folder appears whole or not at all, and must not exist yet.
    """
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder}: exists already")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors: dict[str, np.ndarray] = {}
    for entry in entries(model.config):
        parts = entry.split(found_at(model, entry.path))
        tensors |= {part.name: np.ascontiguousarray(value) for part, value in zip(entry.parts, parts, strict=True)}
    save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
    for name, content in (extra or {}).items():
        (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder)
