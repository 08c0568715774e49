"""The small model that ships with the project; `python -m experiments.train_tiny` makes it."""

from pathlib import Path

TINY = Path(__file__).parents[1] / "tiny"
