"""Reads a Hugging Face config.json: what is not understood is refused by name, never guessed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pallas_kernels import DTYPES
from tokenspeed.models.config import ConfigError, ModelConfig, Rope
from tokenspeed.models.families import FAMILIES, Family
from tokenspeed.models.fields import Fields, read_json

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
"""Names of `hidden_act`, and the kernels' names."""

NEUTRAL: dict[str, tuple] = {
    "pretraining_tp": (1, None),
    "attention_dropout": (0, 0.0, None),
    "partial_rotary_factor": (1, 1.0, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "quantization_config": (None,),
    "auto_map": (None, {}),
    "is_decoder": (True, False, None),
    "tie_encoder_decoder": (False, None),
}
"""Fields that are understood only with these values."""

HARMLESS = frozenset({
    "architectures", "model_type", "transformers_version", "initializer_range", "use_cache", "pad_token_id",
    "bos_token_id", "eos_token_id", "_name_or_path", "torchscript", "output_attentions", "output_hidden_states",
    "return_dict", "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "task_specific_params",
    "unsloth_version", "unsloth_fixed", "_attn_implementation_autoset", "use_bfloat16", "finetuning_task", "prefix",
    "sep_token_id", "cls_token_id", "decoder_start_token_id", "tokenizer_class", "name_or_path",
})  # fmt: skip
"""Fields that change nothing in what a decoder computes."""


def from_folder(folder: str | Path) -> ModelConfig:
    """Reads config.json of a checkpoint folder, and generation_config.json where it is.

    Raises:
        ConfigError: as `from_dict`, or a file is missing or is no JSON object.
    """
    folder = Path(folder)
    raw = read_json(folder / "config.json")
    extra = folder / "generation_config.json"
    return from_dict(raw, read_json(extra) if extra.is_file() else None)


def from_dict(raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Reads the fields of a config.json, and the token ids of a generation_config.json, which come first.

    Raises:
        ConfigError: a family or a field is not supported, missing or contradictory.
    """
    family = _family(raw)
    read = Fields(raw)
    values = dict(
        family=family.name,
        vocab_size=read.integer("vocab_size"),
        d_model=read.integer("hidden_size"),
        d_ff=read.integer("intermediate_size"),
        num_heads=read.integer("num_attention_heads"),
        max_positions=read.integer("max_position_embeddings"),
        eps=read.positive("rms_norm_eps"),
        tied=read.flag("tie_word_embeddings", False),
    )
    values["num_kv_heads"] = read.integer("num_key_value_heads", values["num_heads"])
    if values["num_heads"] % values["num_kv_heads"]:
        raise ConfigError(
            f"num_key_value_heads: expected a divisor of num_attention_heads={values['num_heads']}, "
            f"got {values['num_kv_heads']}"
        )
    head_dim = read.integer("head_dim", values["d_model"] // values["num_heads"])
    if read.get("head_dim") is None and values["d_model"] % values["num_heads"]:
        raise ConfigError(f"hidden_size: expected a multiple of num_attention_heads={values['num_heads']}")
    if head_dim % 2:
        raise ConfigError(f"head_dim: expected an even number, got {head_dim}")
    activation = read.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"hidden_act: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    bias = {field: read.flag(name, False) if isinstance(name, str) else name for field, name in family.biases.items()}
    values |= dict(
        head_dim=head_dim,
        activation=ACTIVATIONS[activation],
        rope=_rope(read),
        layers=family.layers(read, read.integer("num_hidden_layers")),
        dtype=_dtype(read),
        bos_id=next(iter(_ids(generation or {}, raw, "bos_token_id")), None),
        eos_ids=_ids(generation or {}, raw, "eos_token_id"),
        **bias,
    )
    for name, expected in NEUTRAL.items():
        if name in raw and raw[name] not in expected:
            raise ConfigError(f"{name}: {raw[name]!r} is not supported")
    unknown = sorted(set(raw) - read.used - set(NEUTRAL) - HARMLESS - family.fields)
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: not supported in a config of {raw['model_type']}")
    return ModelConfig(**values)


def _rope(read: Fields) -> Rope:
    """`rope_parameters`, or `rope_theta` and `rope_scaling`."""
    scaling = dict(read.get("rope_parameters") or read.get("rope_scaling") or {})
    read.get("rope_scaling")
    inner = Fields(scaling)
    kind = inner.get("rope_type", inner.get("type", "default"))
    inner.used |= {"type", "rope_type"}
    theta = inner.positive("rope_theta", read.positive("rope_theta", 10000.0))
    values: dict[str, Any] = dict(theta=theta, kind=kind)
    if kind == "linear":
        values["factor"] = inner.positive("factor")
    elif kind == "llama3":
        values |= {name: inner.positive(name) for name in ("factor", "low_freq_factor", "high_freq_factor")}
        values["original_max_positions"] = inner.integer("original_max_position_embeddings")
        if values["high_freq_factor"] <= values["low_freq_factor"]:
            raise ConfigError("high_freq_factor: expected more than low_freq_factor")
    elif kind != "default":
        raise ConfigError(f"rope_type: expected default, linear or llama3, got {kind!r}")
    unknown = sorted(name for name in set(scaling) - inner.used if scaling[name] not in (None, {}, []))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: not supported in the RoPE of type {kind}")
    return Rope(**values)


def _dtype(read: Fields) -> str:
    name = read.get("dtype", read.get("torch_dtype", "float32"))
    read.get("torch_dtype")
    if name not in DTYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, got {name!r}")
    return name


def _ids(generation: Mapping[str, Any], raw: Mapping[str, Any], name: str) -> tuple[int, ...]:
    found = generation.get(name, raw.get(name))
    found = [] if found is None else found if isinstance(found, list) else [found]
    if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in found):
        raise ConfigError(f"{name}: expected token ids, got {found!r}")
    return tuple(found)


def _family(raw: Mapping[str, Any]) -> Family:
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(f"model_type: expected one of {', '.join(FAMILIES)}, got {kind!r}")
    family = FAMILIES[kind]
    named = raw.get("architectures") or list(family.architectures)
    if not isinstance(named, list) or any(name not in family.architectures for name in named):
        raise ConfigError(f"architectures: expected {' or '.join(family.architectures)}, got {named!r}")
    return family
