"""Checkpoints in the Hugging Face layout: read into the kernels' layout one tensor at a time, and written."""

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

from tokenspeed.measure.available_memory import needing
from tokenspeed.messages import listed
from tokenspeed.models import hf_config
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.decoder import Llama, QuantisedLinear
from tokenspeed.weights import kv_scales
from tokenspeed.weights.entries import entries, same
from tokenspeed.weights.quantised import UNREAD
from tokenspeed.weights.quantised_entries import Quantised, read, stored, tied_head
from tokenspeed.weights.shards import STALE, WEIGHTS, CheckpointError, Stored, opened


def check(config: ModelConfig, tensors: dict[str, Stored]) -> None:
    """Raises one CheckpointError that lists the tensors that are missing, unexpected or of another shape or dtype."""
    found_entries = stored(config)
    parts = {part.name: part for entry in found_entries for part in entry.parts}
    wanted = {name: part.shape for name, part in parts.items()}
    unread = {
        f"{name}.{end}" for e in found_entries if isinstance(e, Quantised) for name, *_ in e.modules for end in UNREAD
    } - wanted.keys()  # fmt: skip
    tied = {"lm_head.weight"} if config.tied else set()  # a tied head may be written out; the table counts
    others = tied | unread | set(kv_scales.names(config))
    found = {name: tensors[name] for name in wanted if name in tensors}
    shapes = {name: tensor.shape for name, tensor in found.items()}
    dtypes = {name: tensor.dtype for name, tensor in found.items()}
    problems = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [n for n in tensors if n not in wanted and n not in others and not n.endswith(STALE)],
        "of another shape": [
            f"{n} {list(shape)} instead of {list(wanted[n])}"
            for n, shape in shapes.items()
            if (shape or (1,)) != wanted[n]
        ],
        "of another dtype": [
            f"{n} {dtype} in {found[n].file} instead of {' or '.join(parts[n].dtypes)}"
            for n, dtype in dtypes.items()
            if dtype not in parts[n].dtypes
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
    wanted = stored(config)
    with opened(folder) as tensors:
        check(config, tensors)
        largest = max(sum(math.prod(part.shape) for part in entry.parts) for entry in wanted) * dtype.itemsize
        with needing(config.weights_bytes(dtype.itemsize) + largest, f"{folder}: loading it in {dtype}"):
            model = nnx.eval_shape(lambda: Llama(config, dtype, rngs=nnx.Rngs(0)))
            for entry in tqdm(wanted, desc="loading", unit="tensor", disable=not progress, leave=False):
                if isinstance(entry, Quantised):
                    place(model, entry.path, QuantisedLinear(read(entry, tensors, dtype)))
                    continue
                parts = [jax.device_put(tensors[part.name].read()) for part in entry.parts]
                jax.block_until_ready(parts)  # so that no more than these wait in the host's memory
                place(model, entry.path, _joined(parts, dtype, entry.join))
            if (head := tied_head(config, model.embedding[...])) is not None:
                model.head = QuantisedLinear(head)
            model.kv_scales = nnx.data(kv_scales.read(config, tensors))
    return model


def _joined(parts: list[jax.Array], dtype: Any, join: Callable[..., jax.Array]) -> jax.Array:
    if join is same and parts[0].dtype == dtype:
        return parts[0]  # a program would copy it
    return _cast_and_joined(parts, dtype, join)


@functools.partial(jax.jit, static_argnames=("dtype", "join"))
def _cast_and_joined(parts, dtype, join):
    return join(*(part.astype(dtype) for part in parts))


def place(model: Llama, path: tuple[str | int, ...], value: jax.Array | nnx.Module) -> None:
    """Puts a parameter, or a module, into the model."""
    *way, last = path
    owner: Any = model
    for step in way:
        owner = owner[step] if isinstance(step, int) else getattr(owner, step)
    setattr(owner, last, value if isinstance(value, nnx.Module) else nnx.Param(value))


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
    if model.config.quantisation is not None:
        raise CheckpointError("quantisation: a quantised model cannot be saved")
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
