"""Quantises a checkpoint into a folder in the compressed-tensors format, a projection at a time."""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from tokenspeed.measure.available_memory import needing
from tokenspeed.messages import listed, one_line
from tokenspeed.models import compressed_tensors, hf_config
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.fields import read_json
from tokenspeed.models.quantisation import PACKED, Scheme
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.weights import activation_scaling, checkpoint
from tokenspeed.weights.activation_scaling import Scaling
from tokenspeed.weights.packing import encoded
from tokenspeed.weights.partial_folder import begun, write
from tokenspeed.weights.quantised import FLOAT, tensors_of
from tokenspeed.weights.quantised_entries import Quantised, stored
from tokenspeed.weights.recipe import Recipe, quantisation_of
from tokenspeed.weights.rounding import rounded
from tokenspeed.weights.shards import INDEX, PICKLES, WEIGHTS, CheckpointError, Stored, opened

SHARD_BYTES = 4 * 10**9
CONFIG = "config.json"
WEIGHT_FILES = (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".npz", ".index.json", *PICKLES)
"""Ends of names of files that hold weights, or that say where they are: not copied."""
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I32": 4, "F8_E4M3": 1}


@dataclasses.dataclass(frozen=True)
class Piece:
    """A tensor of the source and what becomes of it.

    Attributes:
        tensor: of the source. scheme: that it is quantised by; None: it is copied. nbytes: of what is written.
    """

    tensor: Stored
    scheme: Scheme | None
    nbytes: int

    @property
    def source_bytes(self) -> int:
        return math.prod(self.tensor.shape) * BYTES[self.tensor.dtype]


def convert(
    source: str | Path,
    out: str | Path,
    recipe: Recipe,
    *,
    text: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
) -> tuple[int, int]:
    """Quantises the projections of a checkpoint; its other tensors, and what else is in its folder, are copied.

    `out` appears whole. An interrupted run leaves OUT.partial, from which the same call goes on.

    Args:
        text: one like those that the model is to see, for `activation_scaling`; None: weights are rounded as they are.
        shard_bytes: of the tensors of a file, at most, unless one alone is larger; they are held in memory.
        progress: show a bar on standard error.

    Returns:
        Bytes of the source's tensors, and of those that were written.

    Raises:
        ConfigError, CheckpointError: the source is wrong or quantised already; `out` exists; OUT.partial is of another
            conversion, or there is no room for it.
        ValueError, TypeError: the recipe is wrong, or does not fit the model.
        NotEnoughMemory: a shard takes more than there is.
    """
    source, out = Path(source), Path(out)
    config = hf_config.from_folder(source)
    if config.quantisation is not None:
        raise CheckpointError(f"{source}: expected weights that are not quantised, got a quantization_config")
    target = dataclasses.replace(config, quantisation=quantisation_of(config, recipe))
    ids = None if text is None else _ids(source, text, config)
    with opened(source) as tensors:
        checkpoint.check(config, tensors)
        pieces = list(_pieces(target, tensors))
        sizes = sum(piece.source_bytes for piece in pieces), sum(piece.nbytes for piece in pieces)
        shards = _shards(pieces, shard_bytes)
        files = _files(source, tensors)
        others = _others(source)
        digest = None if ids is None else hashlib.sha256(ids.tobytes()).hexdigest()
        options = dataclasses.asdict(recipe) | dict(shard_bytes=shard_bytes, text=digest)
        with begun(out, options, files) as folder:
            left = {name: shard for name, shard in shards.items() if not (folder / name).exists()}
            _check_disk(out, sum(piece.nbytes for shard in left.values() for piece in shard), others)
            peak = max(sum(piece.nbytes for piece in shard) for shard in shards.values())
            peak += max(piece.source_bytes for piece in pieces)
            with needing(peak, f"{source}: converting it"):
                scaling = None
                if ids is not None and left:
                    scaling = activation_scaling.found(target, tensors, ids, progress=progress)
                done = len(pieces) - sum(map(len, left.values()))
                with tqdm(
                    total=len(pieces), initial=done, desc="converting", unit="tensor", disable=not progress
                ) as bar:
                    for name, shard in left.items():
                        _write_shard(folder, name, shard, config, scaling, bar)
            for path in others:
                write(folder, path.name, lambda to, path=path: shutil.copyfile(path, to))
            _write_index(folder, list(shards))
            _write_config(folder, source, target)
            if changed := [name for name, now in _files(source, tensors).items() if now != files[name]]:
                raise CheckpointError(f"{source}: {listed(changed)}: changed while it was converted")
    return sizes


def _ids(source: Path, text: str, config: ModelConfig) -> np.ndarray:
    tokenizer = Tokenizer.from_folder(source)
    if tokenizer is None:
        raise ValueError(f"text: {source} has no tokenizer")
    return activation_scaling.sequences_of(tokenizer.encode(text), config)


def _pieces(config: ModelConfig, tensors: dict[str, Stored]) -> Iterator[Piece]:
    """What becomes of each tensor of the model, in its order."""
    scale_bytes = jnp.dtype(config.dtype).itemsize
    for entry in stored(config):
        if not isinstance(entry, Quantised):
            for part in entry.parts:
                whole = Piece(tensors[part.name], None, 0)
                yield dataclasses.replace(whole, nbytes=whole.source_bytes)
            continue
        for name, outputs, inputs in entry.modules:
            parts = tensors_of(entry.scheme, outputs, inputs)
            nbytes = sum(
                math.prod(part.shape) * (scale_bytes if part.dtypes == FLOAT else BYTES[part.dtypes[0]])
                for part in parts
            )
            shape_bytes = 16 if entry.scheme.layout == PACKED else 0
            yield Piece(tensors[f"{name}.weight"], entry.scheme, nbytes + shape_bytes)


def _shards(pieces: list[Piece], shard_bytes: int) -> dict[str, list[Piece]]:
    """The pieces of each file, by its name."""
    found: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        if not found or size + piece.nbytes > shard_bytes:
            found.append([])
            size = 0
        found[-1].append(piece)
        size += piece.nbytes
    if len(found) == 1:
        return {WEIGHTS: found[0]}
    return {f"model-{i:05}-of-{len(found):05}.safetensors": shard for i, shard in enumerate(found, 1)}


def _files(source: Path, tensors: dict[str, Stored]) -> dict[str, list[int]]:
    """[size, time of change in ns] of the files that a conversion reads."""
    paths = {tensor.path for tensor in tensors.values()} | {source / CONFIG, source / INDEX}
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths if path.exists()}


def _others(source: Path) -> list[Path]:
    """Files to copy: those of a tokenizer, a licence and the like, but no weights and nothing hidden."""
    return sorted(
        path
        for path in source.iterdir()
        if path.is_file() and path.name != CONFIG and not path.name.startswith(".")
        and not path.name.lower().endswith(WEIGHT_FILES)
    )  # fmt: skip


def _check_disk(out: Path, nbytes: int, others: list[Path]) -> None:
    nbytes += sum(path.stat().st_size for path in others)
    free = shutil.disk_usage(out.parent).free
    if nbytes > free:
        raise CheckpointError(f"{out}: takes {nbytes / 1e9:,.1f} GB of disk, {free / 1e9:,.1f} GB are free")


def _write_shard(
    folder: Path, name: str, shard: list[Piece], config: ModelConfig, scaling: Scaling | None, bar: Any
) -> None:
    tensors: dict[str, np.ndarray] = {}
    for piece in shard:
        tensors |= _converted(piece, config.dtype, scaling)
        bar.update()
    try:
        write(folder, name, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    except SafetensorError as error:  # a disk that is full, too
        raise CheckpointError(f"{folder / name}: {one_line(error)}") from error


def _converted(piece: Piece, dtype: str, scaling: Scaling | None) -> dict[str, np.ndarray]:
    """What is written of a piece, by name."""
    name, scheme = piece.tensor.name, piece.scheme
    values = piece.tensor.read()
    if scheme is None:
        return {name: values if scaling is None else scaling.norms.get(name, values)}
    if scaling is not None and name in scaling.columns:
        values = values.astype(np.float32) * scaling.columns[name]
    try:
        found = rounded(
            values, scheme.format, group=scheme.group, symmetric=not scheme.zeros, scale_dtype=jnp.dtype(dtype)
        )
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None
    module = name.removesuffix("weight")
    return {f"{module}{end}": array for end, array in encoded(scheme, *found).items()}


def _write_index(folder: Path, names: list[str]) -> None:
    """The index of several files, by what is in them."""
    if names == [WEIGHTS]:
        return
    places, total = {}, 0
    for name in names:
        with safe_open(folder / name, framework="np") as file:
            places |= dict.fromkeys(file.keys(), name)
        with open(folder / name, "rb") as file:
            total += os.fstat(file.fileno()).st_size - 8 - int.from_bytes(file.read(8), "little")
    _write_json(folder, INDEX, dict(metadata=dict(total_size=total), weight_map=dict(sorted(places.items()))))


def _write_config(folder: Path, source: Path, config: ModelConfig) -> None:
    """Last of all: a folder without it is no checkpoint."""
    assert config.quantisation is not None
    raw = read_json(source / CONFIG) | dict(quantization_config=compressed_tensors.as_dict(config.quantisation))
    _write_json(folder, CONFIG, raw)


def _write_json(folder: Path, name: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write(folder, name, lambda path: path.write_text(text, encoding="utf-8"))
