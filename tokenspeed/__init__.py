"""LLaMA-like models in Flax on fused kernels: `LLM.from_pretrained(folder).generate(prompts, SamplingParams())`."""

from tokenspeed.llm import LLM, Completion
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.weights.tiny import TINY

__all__ = ["LLM", "TINY", "Completion", "SamplingParams"]
