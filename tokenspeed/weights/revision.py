"""Revision: a hash of all that is loaded of a checkpoint, by which a deployment pins it."""

import concurrent.futures
import hashlib
import os
from pathlib import Path

ENDINGS = (".json", ".jinja", ".safetensors")
"""Of the files that may be read: configs, tokenizer, templates and weights."""


def revision_of(folder: str | os.PathLike) -> str:
    """The revision of a checkpoint folder, 64 hex digits.

    It is the sha256 of a line for each file, in the order of their names: name, bytes, sha256 of its content, with
    spaces between them. Every byte is read: as fast as the disk does, or 1.5 to 2 GB/s a processor, one file each, so
    that 140 GB in 30 files take about 10 s on 8 processors where the disk keeps up.

    Raises:
        OSError: a file cannot be read. ValueError: there is none.
    """
    files = [path for path in Path(folder).iterdir() if path.suffix in ENDINGS and path.is_file()]
    if not files:
        raise ValueError(f"{folder}: expected files that end with {', '.join(ENDINGS)}, got none")
    files.sort(key=lambda path: path.name)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib lets other threads run
        return hashlib.sha256("".join(pool.map(_line, files)).encode()).hexdigest()


def _line(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{path.name} {file.tell()} {digest}\n"
