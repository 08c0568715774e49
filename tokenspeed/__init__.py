"""LLaMA-like models in Flax on fused kernels: `LLM.from_pretrained(folder).generate(prompts, SamplingParams())`."""

from tokenspeed.llm import LLM, Completion
from tokenspeed.sampling_params import SamplingParams
from tokenspeed.tiny_model import TINY

__all__ = ["LLM", "TINY", "Completion", "SamplingParams"]
