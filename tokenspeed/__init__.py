"""LLaMA-like models in Flax on fused kernels: `LLM.from_pretrained(folder).generate(prompts, SamplingParams())`.

What is public is imported when it is first asked for, so that the command line is there before JAX is.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenspeed.async_engine import AsyncEngine
    from tokenspeed.completion import Completion
    from tokenspeed.llm import LLM
    from tokenspeed.sampling.params import SamplingParams
    from tokenspeed.weights.tiny import TINY

_HOMES = {
    "AsyncEngine": "tokenspeed.async_engine",
    "LLM": "tokenspeed.llm",
    "TINY": "tokenspeed.weights.tiny",
    "Completion": "tokenspeed.completion",
    "SamplingParams": "tokenspeed.sampling.params",
}

__all__ = ["LLM", "TINY", "AsyncEngine", "Completion", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found
