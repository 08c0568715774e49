"""Checkpoints and golden outputs beside the repository, or where TOKENSPEED_SHARED says; without them tests skip."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("TOKENSPEED_SHARED", Path(__file__).resolve().parents[3] / "shared"))
GOLDENS = ("llama-gqa", "llama-sharded", "llama31-rope", "mistral-window", "qwen2-bias")


def folder(*parts: str) -> Path:
    """A folder of shared data, or a skip that says which is missing."""
    path = SHARED.joinpath(*parts)
    if not path.is_dir():
        pytest.skip(f"needs ../shared/{'/'.join(parts)}, which is not here")
    return path
