"""Checkpoints and golden outputs that lie beside the repository; without them the tests that read them are skipped."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDENS = ("llama-gqa", "llama-sharded", "llama31-rope", "mistral-window", "qwen2-bias")


def folder(*parts: str) -> Path:
    """A folder of shared data, or a skip that says which is missing."""
    path = SHARED.joinpath(*parts)
    if not path.is_dir():
        pytest.skip(f"needs ../shared/{'/'.join(parts)}, which is not here")
    return path
