"""A folder that is written file by file and appears whole; what an interrupted run has finished, the next one keeps."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from tokenspeed.messages import listed, shown
from tokenspeed.models.fields import read_json
from tokenspeed.weights.shards import CheckpointError

STATE, LOCK, WRITING, FOLDER = "state.json", "lock", "writing", "folder"
"""What is in OUT.partial: how it was begun, who writes to it, a file that is not finished, and what becomes OUT."""


def partial_of(out: Path) -> Path:
    """OUT.partial, beside OUT."""
    return out.with_name(f"{out.name}.partial")


@contextlib.contextmanager
def begun(out: Path, options: dict[str, Any], files: dict[str, Any]) -> Iterator[Path]:
    """A folder to write into by `write`, which becomes `out` where the context ends without an error.

    Otherwise OUT.partial stays if a file is finished, and the next run with the same options and files goes on with it.

    Args:
        options, files: JSON values by name: how the content is made, and of what.

    Raises:
        CheckpointError: `out` exists; OUT.partial is of other options or files, or another process writes to it.
    """
    if os.path.lexists(out):
        raise CheckpointError(f"{out}: exists already")
    partial = partial_of(out)
    partial.mkdir(parents=True, exist_ok=True)
    # A lock that is a mere file would outlive a process that is killed: where the system has no other there is none.
    lock = filelock.FileLock(partial / LOCK, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise CheckpointError(f"{partial}: another process writes to it") from None
    try:
        folder = partial / FOLDER
        folder.mkdir(exist_ok=True)
        state = json.loads(json.dumps(dict(options=options, files=files)))
        if any(folder.iterdir()):
            _check_state(partial, state)
        else:
            (partial / WRITING).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            os.replace(partial / WRITING, partial / STATE)
        yield folder
        os.rename(folder, out)
    finally:
        lock.release()
        if not any((partial / FOLDER).glob("*")):  # it is OUT now, or there is nothing to go on from
            shutil.rmtree(partial, ignore_errors=True)


def write(folder: Path, name: str, writer: Callable[[Path], Any]) -> None:
    """Has `writer` write a file of the folder of `begun`, where it appears once it is whole and on the disk."""
    writing = folder.parent / WRITING
    writer(writing)
    shutil.copymode(folder.parent / STATE, writing)  # safetensors makes files that only their owner may read
    with open(writing, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(writing, folder / name)


def _check_state(partial: Path, state: dict[str, dict[str, Any]]) -> None:
    """Raises unless OUT.partial, which holds finished files, was begun in the same state."""
    path = partial / STATE
    found = read_json(path, CheckpointError)
    for kind, now in state.items():
        then = found.get(kind)
        if not isinstance(then, dict):
            raise CheckpointError(f"{path}: {kind}: expected an object, got {shown(then)}; remove {partial}")
        other = [name for name in now.keys() | then.keys() if now.get(name) != then.get(name)]
        if other and kind == "files":
            raise CheckpointError(f"{partial}: was begun from other files than now: {listed(other)}; remove it")
        if other:
            was = "; ".join(f"{name} {shown(then.get(name))}, now {shown(now.get(name))}" for name in sorted(other))
            raise CheckpointError(f"{partial}: was begun with other options: {was}; repeat them, or remove it")
