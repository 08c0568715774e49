"""The families of models that run, one entry each: how its config.json differs from LLaMA's."""

import dataclasses
from collections.abc import Callable

from tokenspeed.models.config import ConfigError, LayerConfig
from tokenspeed.models.fields import Fields


def _all_alike(read: Fields, count: int) -> tuple[LayerConfig, ...]:
    return (LayerConfig(),) * count


def _one_window(read: Fields, count: int) -> tuple[LayerConfig, ...]:
    """Mistral: every layer has the window, or none has."""
    window = read.get("sliding_window")
    return (LayerConfig(window=None if window is None else read.integer("sliding_window")),) * count


def _window_of_some(read: Fields, count: int) -> tuple[LayerConfig, ...]:
    """Qwen 2: the layers from `max_window_layers` on, if `use_sliding_window`; `layer_types` says it where it is."""
    from_layer = read.get("max_window_layers", count)
    kinds = read.get("layer_types")
    window = read.integer("sliding_window") if read.flag("use_sliding_window", False) else None
    read.get("sliding_window")
    if kinds is None:
        kinds = ["sliding_attention" if i >= from_layer else "full_attention" for i in range(count)]
    if len(kinds) != count or set(kinds) - {"sliding_attention", "full_attention"}:
        raise ConfigError(f"layer_types: expected {count} of sliding_attention or full_attention, got {kinds!r}")
    return tuple(LayerConfig(window=window if kind == "sliding_attention" else None) for kind in kinds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How one family's config is read.

    Attributes:
        name: its `model_type`. architectures: the names it goes by.
        biases: for each bias of ModelConfig the field that says whether it is there, or the answer.
        layers: (fields, number of layers) -> what each layer is.
        fields: further fields that it has and that change nothing here.
    """

    name: str
    architectures: tuple[str, ...]
    biases: dict[str, str | bool]
    layers: Callable[[Fields, int], tuple[LayerConfig, ...]] = _all_alike
    fields: frozenset[str] = frozenset()


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="llama",
            architectures=("LlamaForCausalLM",),
            biases=dict(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"),
        ),
        Family(
            name="mistral",
            architectures=("MistralForCausalLM",),
            biases=dict(qkv_bias=False, out_bias=False, mlp_bias=False),
            layers=_one_window,
        ),
        Family(
            name="qwen2",
            architectures=("Qwen2ForCausalLM",),
            biases=dict(qkv_bias=True, out_bias=False, mlp_bias=False),
            layers=_window_of_some,
        ),
    )
}
"""A new family is an entry here, its tensors' names in `weights.checkpoint` where they are not LLaMA's, and a test."""
