"""Reads a Hugging Face config.json: what is not understood is refused by name, never guessed."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pallas_kernels import DTYPES
from tokenspeed.messages import listed, shown
from tokenspeed.models import hf_quantisation
from tokenspeed.models.config import ConfigError, ModelConfig, Rope
from tokenspeed.models.families import FAMILIES, Family
from tokenspeed.models.fields import Fields, read_json

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
"""Names of `hidden_act`, and the kernels' names."""
ROPES = ("default", "linear", "llama3")
MAX_LAYERS = 4096
"""Far beyond any that was published; each is an object here, and a line of compiled code."""

NEUTRAL: dict[str, tuple] = {
    "partial_rotary_factor": (1,),
    "activation": ("swiglu", "silu"),
    "hidden_activation": ("silu",),
    "is_decoder": (True, False),
    "is_causal": (True,),
    "use_causal_mask": (True,),
    "use_rope": (True,),
    "use_glu": (True,),
    "scale_attn_weights": (True,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "rope_ratio": (1,),
}
"""Fields that are understood only with these values; among them the switches that turn something off when false."""

HARMLESS = frozenset({
    "architectures", "model_type", "transformers_version", "initializer_range", "use_cache", "pad_token_id",
    "_name_or_path", "torchscript", "output_attentions", "output_hidden_states", "return_dict",
    "return_dict_in_generate", "output_scores", "chunk_size_feed_forward", "id2label", "label2id", "problem_type",
    "task_specific_params", "_attn_implementation_autoset", "_attn_implementation", "attn_implementation",
    "_flash_attn_2_enabled", "_commit_hash", "use_bfloat16", "finetuning_task", "prefix", "bos_token", "eos_token",
    "pad_token", "unk_token", "sep_token_id", "cls_token_id", "decoder_start_token_id", "unk_token_id",
    "tokenizer_class", "name_or_path", "is_llama_config", "pretraining_tp", "neftune_noise_alpha",
    "max_sequence_length", "model_max_length", "max_length", "min_length", "max_new_tokens", "do_sample", "temperature",
    "top_k", "top_p", "typical_p", "num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty",
    "length_penalty", "diversity_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "max_window_layers",
    "use_labels", "use_reentrant_checkpointing", "gradient_checkpointing",
})  # fmt: skip
"""Fields that change nothing in what a decoder computes, whatever they hold: records of how it was made and what wrote
it, rounding (`pretraining_tp` splits products into sums of the same numbers), ids and settings of sampling, which
`SamplingParams` holds here."""

TOKEN_RULES = frozenset({
    "bad_words_ids", "begin_suppress_tokens", "constraints", "force_words_ids", "forced_bos_token_id",
    "forced_decoder_ids", "forced_eos_token_id", "sequence_bias", "suppress_tokens", "watermarking_config",
})  # fmt: skip
"""Fields of a generation_config.json that forbid or force tokens, which nothing here does."""


def _harmless(name: str, value: Any) -> bool:
    """Whether a field that nothing here reads may pass.

    What is off (false, null or empty) adds nothing to the decoder that the other fields describe; `NEUTRAL` has the
    switches that take something from it. A dropout is of training. A tool's own records carry its name.
    """
    return (
        value is None
        or value is False
        or value in ("", [], {})
        or name in HARMLESS
        or name.endswith(("dropout", "_pdrop", "_version"))
        or name.startswith(("transformers.js", "unsloth_"))
    )


def from_folder(folder: str | Path) -> ModelConfig:
    """Reads config.json of a checkpoint folder, and generation_config.json where it is.

    Raises:
        ConfigError: as `from_dict`, with the file's name; or a file is missing or is no JSON object.
    """
    folder = Path(folder)
    config = from_file(folder / "config.json")
    extra = folder / "generation_config.json"
    if not extra.exists():
        return config
    return _with_generation(config, Fields(read_json(extra), f"{extra}: "))


def from_file(path: str | Path) -> ModelConfig:
    """Reads a config.json.

    Raises:
        ConfigError: as `from_dict`, with the file's name.
    """
    return from_dict(read_json(Path(path)), within=f"{path}: ")


def from_dict(raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None, *, within: str = "") -> ModelConfig:
    """Reads the fields of a config.json, and the token ids of a generation_config.json, which come first.

    How to sample, which a generation_config.json may say too, is for `SamplingParams` to say here.

    Args:
        within: what the names of fields begin with in messages.

    Raises:
        ConfigError: a family or a field is not supported, missing or contradictory.
    """
    read = Fields(raw, within)
    family = _family(read)
    values: dict[str, Any] = dict(
        family=family.name,
        vocab_size=read.integer("vocab_size"),
        d_model=read.integer("hidden_size"),
        d_ff=read.integer("intermediate_size"),
        num_heads=read.integer("num_attention_heads"),
        max_positions=read.integer("max_position_embeddings"),
        eps=read.number("rms_norm_eps", most=1),
        tied=read.flag("tie_word_embeddings", False),
        activation=ACTIVATIONS[read.choice("hidden_act", ACTIVATIONS, "silu")],
    )
    heads = values["num_heads"]
    values["num_kv_heads"] = read.integer("num_key_value_heads", heads)
    if heads % values["num_kv_heads"]:
        raise read.error(
            "num_key_value_heads", f"expected a divisor of num_attention_heads={heads}, got {values['num_kv_heads']}"
        )
    if read.get("head_dim") is None and values["d_model"] % heads:
        raise read.error("hidden_size", f"expected a multiple of num_attention_heads={heads}, got {values['d_model']}")
    values["head_dim"] = read.integer("head_dim", values["d_model"] // heads)
    if values["head_dim"] % 2:
        raise read.error("head_dim", f"expected an even number, got {values['head_dim']}")
    bias = {field: read.flag(name, False) if isinstance(name, str) else name for field, name in family.biases.items()}
    values |= dict(
        rope=_rope(read),
        quantisation=hf_quantisation.read(read),
        layers=family.layers(read, read.integer("num_hidden_layers", most=MAX_LAYERS)),
        dtype=read.choice("torch_dtype" if read.get("dtype") is None else "dtype", DTYPES, "float32"),
        **bias,
    )
    for name, expected in NEUTRAL.items():
        value = read.get(name)
        if value is not None and value not in expected:
            raise read.error(name, f"{shown(value)} is not supported")
    ids = {"bos_token_id", "eos_token_id"}
    unknown = [name for name in raw if name not in read.used | ids and not _harmless(name, raw[name])]
    if unknown:
        raise ConfigError(f"{within}{listed(unknown)}: not supported in a config of {family.name}")
    config = ModelConfig(**values)
    config = dataclasses.replace(config, **_ends(read, config))
    return config if generation is None else _with_generation(config, Fields(generation))


def _with_generation(config: ModelConfig, read: Fields) -> ModelConfig:
    unsupported = [name for name in TOKEN_RULES if read.get(name) not in (None, False, [], {})]
    if unsupported:
        raise ConfigError(f"{read.within}{listed(unsupported)}: not supported")
    return dataclasses.replace(config, **_ends(read, config))


def _rope(read: Fields) -> Rope:
    """`rope_parameters`, or `rope_theta` and `rope_scaling`."""
    new, old = read.inner("rope_parameters"), read.inner("rope_scaling")
    if new.raw and old.raw and new.raw != old.raw:
        raise read.error("rope_parameters, rope_scaling", "expected one of them")
    inner = new if new.raw else old
    theta = read.number("rope_theta", inner.number("rope_theta", 10000.0, least=1), least=1)
    if inner.number("rope_theta", theta) != theta:
        raise inner.error(
            "rope_theta", f"expected the other rope_theta, {theta:g}, got {shown(inner.get('rope_theta'))}"
        )
    kind = inner.choice("type" if inner.get("rope_type") is None else "rope_type", ROPES, "default")
    if inner.get("type", kind) != kind:
        raise inner.error("type", f"expected rope_type, {kind}, got {shown(inner.get('type'))}")
    values: dict[str, Any] = dict(theta=theta, kind=kind)
    if kind == "linear":
        values["factor"] = inner.number("factor", least=1)
    elif kind == "llama3":
        values |= {name: inner.number(name) for name in ("low_freq_factor", "high_freq_factor")}
        values["factor"] = inner.number("factor", least=1)
        values["original_max_positions"] = inner.integer("original_max_position_embeddings")
        if values["high_freq_factor"] <= values["low_freq_factor"]:
            raise inner.error("high_freq_factor", "expected more than low_freq_factor")
    if inner.number("partial_rotary_factor", 1.0) != 1:
        raise inner.error("partial_rotary_factor", f"{shown(inner.get('partial_rotary_factor'))} is not supported")
    unknown = [name for name in inner.raw if name not in inner.used and inner.raw[name] not in (None, False, {}, [])]
    if unknown:
        raise ConfigError(f"{inner.within}{listed(unknown)}: not supported in the RoPE of type {kind}")
    return Rope(**values)


def _ends(read: Fields, config: ModelConfig) -> dict[str, Any]:
    """The ids that begin and end a text, where the file has them."""
    found: dict[str, tuple[int, ...]] = {}
    for name in ("bos_token_id", "eos_token_id"):
        if name in read.raw:
            value = read.get(name, [])
            ids = value if isinstance(value, list) else [value]
            if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < config.vocab_size for i in ids):
                raise read.error(name, f"expected token ids from 0 to {config.vocab_size - 1}, got {shown(value)}")
            found[name] = tuple(ids)
    fields = {}
    if "bos_token_id" in found:
        fields["bos_id"] = next(iter(found["bos_token_id"]), None)
    if "eos_token_id" in found:
        fields["eos_ids"] = found["eos_token_id"]
    return fields


def _family(read: Fields) -> Family:
    family = FAMILIES[read.choice("model_type", FAMILIES)]
    named = read.get("architectures", list(family.architectures))
    if not isinstance(named, list) or any(name not in family.architectures for name in named):
        raise read.error("architectures", f"expected {' or '.join(family.architectures)}, got {shown(named)}")
    return family
