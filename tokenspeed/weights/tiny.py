"""The small model that ships with the project; `python -m experiments.train_tiny` makes it."""

import os
from pathlib import Path

TINY = Path(__file__).parents[1] / "tiny"


def folder_of(model: str | os.PathLike) -> Path:
    """The folder of a checkpoint: the one that is given, or the small model's for 'tiny'."""
    return TINY if model == "tiny" else Path(model)
