"""The families of models that run, one entry each: how its config.json differs from LLaMA's."""

import dataclasses
from collections.abc import Callable

from tokenspeed.messages import shown
from tokenspeed.models.config import LayerConfig
from tokenspeed.models.fields import Fields

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of layers in `layer_types`."""


def _all_alike(read: Fields, count: int) -> tuple[LayerConfig, ...]:
    return _of_kinds(read, [FULL] * count, None)


def _one_window(read: Fields, count: int) -> tuple[LayerConfig, ...]:
    """Mistral: every layer has the window, or none has."""
    window = None if read.get("sliding_window") is None else read.integer("sliding_window")
    return _of_kinds(read, [FULL if window is None else SLIDING] * count, window)


def _window_of_some(read: Fields, count: int) -> tuple[LayerConfig, ...]:
    """Qwen 2: the layers from `max_window_layers` on, if `use_sliding_window`; `layer_types` says it where it is."""
    from_layer = read.integer("max_window_layers", count, least=0)
    window = read.integer("sliding_window") if read.flag("use_sliding_window", False) else None
    read.get("sliding_window")
    kinds = [SLIDING if window is not None and i >= from_layer else FULL for i in range(count)]
    if window is None:
        return _of_kinds(read, kinds, None)
    return _of_kinds(read, _kinds(read, count) or kinds, window)


def _kinds(read: Fields, count: int) -> list[str] | None:
    """`layer_types`, or None where it is absent."""
    kinds = read.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list) or len(kinds) != count or any(kind not in (FULL, SLIDING) for kind in kinds)
    ):
        raise read.error("layer_types", f"expected {count} of {SLIDING} or {FULL}, got {shown(kinds)}")
    return kinds


def _of_kinds(read: Fields, kinds: list[str], window: int | None) -> tuple[LayerConfig, ...]:
    """The layers of these kinds; `layer_types`, where it is there, must say the same."""
    if (_kinds(read, len(kinds)) or kinds) != kinds:
        raise read.error("layer_types", f"expected only {kinds[0]}, which the other fields say")
    return tuple(LayerConfig(window=window if kind == SLIDING else None) for kind in kinds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How one family's config is read.

    Attributes:
        name: its `model_type`. architectures: the names it goes by.
        biases: for each bias of ModelConfig the field that says whether it is there, or the answer.
        layers: (fields, number of layers) -> what each layer is.
    """

    name: str
    architectures: tuple[str, ...]
    biases: dict[str, str | bool]
    layers: Callable[[Fields, int], tuple[LayerConfig, ...]] = _all_alike


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
