"""The safetensors files of a checkpoint, and the tensors in them by name.

Files are memory-mapped; no code from a checkpoint runs, and pickles are refused.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # also names bfloat16 for numpy, which safetensors asks for
import numpy as np
from safetensors import SafetensorError, safe_open

from tokenspeed.measure.available_memory import NotEnoughMemory, available_bytes
from tokenspeed.messages import listed, one_line, shown
from tokenspeed.models.fields import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
"""Names of files that hold weights; others beside them (`consolidated.safetensors`, adapters) are no part of it."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOAT8 = "F8_E4M3"
STALE = "rotary_emb.inv_freq"
"""Ends the names of tensors that old checkpoints carry and that are computed here."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; names the files or tensors that are wrong."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in an open file.

    Attributes:
        name: of the tensor. path: of the file. handle: of safetensors.
    """

    name: str
    path: Path
    handle: Any

    @property
    def file(self) -> str:
        return self.path.name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.handle.get_slice(self.name).get_shape())

    @property
    def dtype(self) -> str:
        """As safetensors calls it: 'BF16', 'F8_E4M3'."""
        return self.handle.get_slice(self.name).get_dtype()

    def read(self) -> np.ndarray:
        if self.dtype == FLOAT8:
            return _bytes_of(self.path, self.name).view(ml_dtypes.float8_e4m3fn).reshape(self.shape)
        return self.handle.get_tensor(self.name)


def _bytes_of(path: Path, name: str) -> np.ndarray:
    """uint8 [bytes] of a tensor whose dtype safetensors has no NumPy name for: its offsets are in the file's header."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(size))[name]["data_offsets"]
    return np.memmap(path, np.uint8, mode="r", offset=8 + size + begin, shape=(end - begin,))


@contextlib.contextmanager
def opened(folder: str | Path) -> Iterator[dict[str, Stored]]:
    """All tensors of a checkpoint by name: those of model.safetensors, or those that its index names, where it says.

    Raises:
        CheckpointError: a file is missing or does not open; index and files contradict each other.
        ConfigError: the index is no JSON object.
        NotEnoughMemory: the files cannot be mapped.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    places = _index(folder)
    files = [WEIGHTS] if places is None else sorted(set(places.values()))
    _check_files(folder, files)
    with contextlib.ExitStack() as stack:
        found: dict[str, Stored] = {}
        broken, unnamed = [], []
        for file in files:
            try:
                handle = stack.enter_context(safe_open(folder / file, framework="np"))
            except MemoryError as error:  # a limit of the address space: mapping a file takes no memory
                size, left = (folder / file).stat().st_size, available_bytes()
                raise NotEnoughMemory(
                    f"{folder / file}: mapping it takes {size / 1e9:,.1f} GB of address space, "
                    f"{left / 1e9:,.1f} GB are left"
                ) from error
            except (SafetensorError, OSError) as error:
                broken.append(f"{file} ({one_line(error)})")
                continue
            names = list(handle.keys())
            found |= {
                name: Stored(name, folder / file, handle)
                for name in names
                if places is None or places.get(name) == file
            }
            unnamed += [name for name in names if places is not None and name not in places]
        if broken:
            raise CheckpointError(f"{folder}: not readable as safetensors, perhaps cut short: {'; '.join(broken)}")
        absent = [f"{name} in {file}" for name, file in (places or {}).items() if name not in found]
        if absent:
            raise CheckpointError(f"{folder / INDEX}: names tensors that are not there: {listed(absent)}")
        unnamed = [name for name in unnamed if not name.endswith(STALE)]
        if unnamed:
            raise CheckpointError(f"{folder / INDEX}: does not name tensors of its files: {listed(unnamed)}")
        yield found


def _index(folder: Path) -> dict[str, str] | None:
    """The file of each tensor, or None where there is no index."""
    path = folder / INDEX
    if not path.exists():
        return None
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path}: weight_map: expected an object of file names, got {shown(places)}")
    for name, file in places.items():
        if not isinstance(file, str) or file != os.path.basename(file) or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: weight_map.{listed([name])}: expected safetensors files of the folder, got {shown(file)}"
            )
    return places


def _check_files(folder: Path, files: list[str]) -> None:
    others = sorted(file.name for file in folder.iterdir() if SHARD.fullmatch(file.name) and file.name not in files)
    missing = [file for file in files if not os.path.isfile(folder / file)]
    if missing:
        hint = f"; {listed(others)}: expected {INDEX} with them" if others else ""
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        if pickles:
            hint += f"; {listed(pickles)}: pickles are not loaded, convert them to safetensors"
        raise CheckpointError(f"{folder}: missing {listed(missing)}{hint}")
    if others:
        raise CheckpointError(
            f"{folder}: expected weights in {listed(files)} alone, got {listed(others)} beside them; "
            "remove what is not of this checkpoint"
        )
