"""What a model is, read from a Hugging Face config.json: families are data, and what is not supported is refused."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DTYPES = ("bfloat16", "float16", "float32")
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
"""Names of `hidden_act`, and the kernels' names."""


class ConfigError(ValueError):
    """A config.json that cannot be run; one line that names the field and what was expected."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary embeddings (Su et al. 2021), split halves, and how their frequencies are scaled.

    Attributes:
        theta: the base.
        kind: 'default'; 'linear' (positions divided by `factor`, Chen et al. 2023); 'llama3' (long wavelengths divided
            by `factor`, short ones kept, a blend between, Llama 3.1).
        factor, low_freq_factor, high_freq_factor, original_max_positions: of the scaled kinds.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a decoder.

    Attributes:
        family: an entry of FAMILIES.
        vocab_size, d_model, d_ff, num_layers, num_heads, num_kv_heads, head_dim: V, D, F, L, N, K, H.
        max_positions: the longest context it was made for.
        eps: of RMSNorm.
        rope: the rotary embedding.
        windows: by layer, how many of the last keys count (sliding window), or None for all.
        activation: 'silu' or 'gelu_tanh'.
        tied: whether the embedding table is the head's weight.
        qkv_bias, out_bias, mlp_bias: which projections have one.
        dtype: of the checkpoint's weights.
        bos_id: the token that begins a text, or None. eos_ids: those that end one.
    """

    family: str
    vocab_size: int
    d_model: int
    d_ff: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    eps: float
    rope: Rope
    windows: tuple[int | None, ...]
    activation: str = "silu"
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    dtype: str = "bfloat16"
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    @property
    def num_parameters(self) -> int:
        """Of the whole model, tied weights once."""
        heads = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        attention = (
            heads * (self.d_model + self.qkv_bias) + (self.num_heads * self.head_dim + self.out_bias) * self.d_model
        )
        mlp = 3 * self.d_model * self.d_ff + self.mlp_bias * (2 * self.d_ff + self.d_model)
        tables = (1 if self.tied else 2) * self.vocab_size * self.d_model
        return self.num_layers * (attention + mlp + 2 * self.d_model) + tables + self.d_model

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes that one position adds to the KV cache of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * itemsize

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> "ModelConfig":
        """Reads the fields of a config.json, and the token ids of a generation_config.json, which come first.

        Raises:
            ConfigError: a family or a field is not supported, missing or contradictory.
        """
        family = _family(raw)
        read = _Fields(raw)
        values = dict(
            family=family.name,
            vocab_size=read.integer("vocab_size"),
            d_model=read.integer("hidden_size"),
            d_ff=read.integer("intermediate_size"),
            num_layers=read.integer("num_hidden_layers"),
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
        bias = {
            field: read.flag(name, False) if isinstance(name, str) else name for field, name in family.biases.items()
        }
        values |= dict(
            head_dim=head_dim,
            activation=ACTIVATIONS[activation],
            rope=_rope(read, values["max_positions"]),
            windows=family.windows(read, values["num_layers"]),
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
        return cls(**values)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ModelConfig":
        """Reads config.json, and generation_config.json where it is."""
        folder = Path(folder)
        raw = read_json(folder / "config.json")
        extra = folder / "generation_config.json"
        return cls.from_dict(raw, read_json(extra) if extra.is_file() else None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; a one-line ConfigError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: expected JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return found


class _Fields:
    """Typed reading of a config, which remembers what was asked for."""

    def __init__(self, raw: Mapping[str, Any]):
        self.raw, self.used = raw, set()

    def get(self, name: str, default: Any = None) -> Any:
        self.used.add(name)
        value = self.raw.get(name)
        return default if value is None else value

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if value is None:
            raise ConfigError(f"{name}: missing")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}: expected a positive integer, got {value!r}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if value is None:
            raise ConfigError(f"{name}: missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(f"{name}: expected a positive number, got {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{name}: expected true or false, got {value!r}")
        return value


def _rope(read: _Fields, max_positions: int) -> Rope:
    """`rope_parameters`, or `rope_theta` and `rope_scaling`."""
    scaling = dict(read.get("rope_parameters") or read.get("rope_scaling") or {})
    read.get("rope_scaling")
    inner = _Fields(scaling)
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


def _dtype(read: _Fields) -> str:
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


def _no_window(read: _Fields, layers: int) -> tuple[int | None, ...]:
    return (None,) * layers


def _one_window(read: _Fields, layers: int) -> tuple[int | None, ...]:
    """Mistral: every layer has the window, or none has."""
    window = read.get("sliding_window")
    return (None if window is None else read.integer("sliding_window"),) * layers


def _window_of_some(read: _Fields, layers: int) -> tuple[int | None, ...]:
    """Qwen 2: the layers from `max_window_layers` on, if `use_sliding_window`; `layer_types` says it where it is."""
    from_layer = read.get("max_window_layers", layers)
    kinds = read.get("layer_types")
    window = read.integer("sliding_window") if read.flag("use_sliding_window", False) else None
    read.get("sliding_window")
    if kinds is None:
        kinds = ["sliding_attention" if i >= from_layer else "full_attention" for i in range(layers)]
    if len(kinds) != layers or set(kinds) - {"sliding_attention", "full_attention"}:
        raise ConfigError(f"layer_types: expected {layers} of sliding_attention or full_attention, got {kinds!r}")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How one family's config is read.

    Attributes:
        name: its `model_type`. architectures: the names it goes by.
        biases: for each bias of ModelConfig the field that says whether it is there, or the answer.
        windows: reads the sliding windows by layer.
        fields: further fields that it has and that change nothing here.
    """

    name: str
    architectures: tuple[str, ...]
    biases: dict[str, str | bool]
    windows: Any = _no_window
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
            windows=_one_window,
        ),
        Family(
            name="qwen2",
            architectures=("Qwen2ForCausalLM",),
            biases=dict(qkv_bias=True, out_bias=False, mlp_bias=False),
            windows=_window_of_some,
        ),
    )
}
"""A family more is an entry here, its names in `checkpoint.entries` where they differ from LLaMA's, and a test."""

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


def _family(raw: Mapping[str, Any]) -> Family:
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(f"model_type: expected one of {', '.join(FAMILIES)}, got {kind!r}")
    family = FAMILIES[kind]
    named = raw.get("architectures") or list(family.architectures)
    if not isinstance(named, list) or any(name not in family.architectures for name in named):
        raise ConfigError(f"architectures: expected {' or '.join(family.architectures)}, got {named!r}")
    return family
