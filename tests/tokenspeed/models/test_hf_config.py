"""What a config.json means, and what is refused by name."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tokenspeed.models import hf_config
from tokenspeed.models.config import ConfigError, Rope
from tokenspeed.models.decoder import Llama
from tokenspeed.models.rope import frequencies

LLAMA = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=128256, hidden_size=4096,
    intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5, hidden_act="silu", rope_theta=500000.0, torch_dtype="bfloat16", bos_token_id=128000,
    eos_token_id=[128001, 128009], tie_word_embeddings=False,
    rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    ),
)  # fmt: skip
QWEN = dict(
    model_type="qwen2", vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
    num_attention_heads=4, max_position_embeddings=512, rms_norm_eps=1e-6,
)  # fmt: skip


def windows_of(config):
    return tuple(layer.window for layer in config.layers)


def test_llama():
    config = hf_config.from_dict(LLAMA)
    assert (config.d_model, config.d_ff, config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (
        4096, 14336, 32, 32, 8, 128,
    )  # fmt: skip
    assert config.rope == Rope(
        theta=500000.0,
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=8192,
    )
    assert windows_of(config) == (None,) * 32 and not config.tied and config.dtype == "bfloat16"
    assert config.bos_id == 128000 and config.eos_ids == (128001, 128009)
    assert config.num_parameters == 8_030_261_248
    assert config.kv_bytes_per_token(2) == 131072


def test_both_spellings_of_rope_agree():
    old = hf_config.from_dict(LLAMA)
    new = {k: v for k, v in LLAMA.items() if k not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = LLAMA["rope_scaling"] | dict(rope_theta=500000.0)
    assert hf_config.from_dict(new) == old
    typed = dict(LLAMA, rope_scaling=dict(type="linear", factor=4.0))
    assert hf_config.from_dict(typed).rope == Rope(theta=500000.0, kind="linear", factor=4.0)


def test_the_generation_config_comes_first():
    config = hf_config.from_dict(LLAMA, dict(eos_token_id=7, bos_token_id=3, temperature=0.6))
    assert config.eos_ids == (7,) and config.bos_id == 3


def test_windows_and_biases():
    mistral = dict(QWEN, model_type="mistral", sliding_window=16)
    assert windows_of(hf_config.from_dict(mistral)) == (16,) * 4
    assert windows_of(hf_config.from_dict(dict(mistral, sliding_window=None))) == (None,) * 4
    qwen = hf_config.from_dict(dict(QWEN, sliding_window=16, use_sliding_window=False))
    assert windows_of(qwen) == (None,) * 4 and qwen.qkv_bias and not qwen.out_bias
    some = dict(QWEN, sliding_window=16, use_sliding_window=True, max_window_layers=3)
    assert windows_of(hf_config.from_dict(some)) == (None, None, None, 16)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert windows_of(hf_config.from_dict(dict(some, layer_types=kinds))) == (16, None, 16, None)
    llama = hf_config.from_dict(dict(LLAMA, attention_bias=True, mlp_bias=True))
    assert llama.qkv_bias and llama.out_bias and llama.mlp_bias


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(model_type="mixtral"), "model_type: expected one of llama, mistral, qwen2, got 'mixtral'"),
        (dict(architectures=["LlamaForSequenceClassification"]), "architectures: expected LlamaForCausalLM"),
        (
            dict(rope_scaling=dict(rope_type="yarn", factor=4.0)),
            "rope_scaling.rope_type: expected one of default, linear, llama3, got 'yarn'",
        ),
        (
            dict(rope_scaling=dict(rope_type="linear", factor=4.0, beta_fast=32)),
            "rope_scaling.beta_fast: not supported",
        ),
        (dict(rope_scaling=dict(rope_type="linear")), "rope_scaling.factor: missing"),
        (dict(rope_scaling="linear"), "rope_scaling: expected an object, got 'linear'"),
        (dict(rope_scaling=[["linear", 2]]), "rope_scaling: expected an object, got [['linear', 2]]"),
        (dict(rope_parameters=3), "rope_parameters: expected an object, got 3"),
        (dict(rope_scaling=dict(type=["linear"])), "rope_scaling.type: expected one of default"),
        (
            dict(rope_scaling=dict(type="linear", factor=True)),
            "rope_scaling.factor: expected a positive number, got True",
        ),
        (dict(rope_scaling=dict(type="linear", factor=1e-30)), "rope_scaling.factor: expected a number from 1 to"),
        (
            dict(rope_scaling=dict(type="linear", rope_type="default")),
            "rope_scaling.type: expected rope_type, default, got 'linear'",
        ),
        (
            dict(rope_scaling=LLAMA["rope_scaling"] | dict(original_max_position_embeddings=8192.5)),
            "rope_scaling.original_max_position_embeddings: expected a positive integer, got 8192.5",
        ),
        (
            dict(rope_scaling=LLAMA["rope_scaling"] | dict(high_freq_factor=1.0)),
            "rope_scaling.high_freq_factor: expected more than low_freq_factor",
        ),
        (dict(rope_parameters=dict(rope_type="default")), "rope_parameters, rope_scaling: expected one of them"),
        (dict(rope_scaling=dict(type="default", rope_theta=10000.0)), "rope_scaling.rope_theta: expected the other"),
        (
            dict(rope_scaling=dict(type="default", mrope_section=[16, 24, 24])),
            "rope_scaling.mrope_section: not supported",
        ),
        (dict(rope_theta=float("nan")), "rope_theta: expected a positive number, got nan"),
        (dict(rope_theta=1e-300), "rope_theta: expected a number from 1 to"),
        (dict(rms_norm_eps=float("inf")), "rms_norm_eps: expected a number from 0 to 1, got inf"),
        (dict(num_hidden_layers=10**6), "num_hidden_layers: expected at most 4096, got 1000000"),
        (dict(max_position_embeddings=10**12), "max_position_embeddings: expected at most 2147483647"),
        (dict(vocab_size=2**31), "vocab_size: expected at most 2147483647"),
        (dict(vocab_size=10**3000), "vocab_size: expected at most 2147483647, got 1000"),
        (dict(hidden_size=4096.0), "hidden_size: expected a positive integer, got 4096.0"),
        (dict(num_attention_heads=True), "num_attention_heads: expected a positive integer, got True"),
        (dict(hidden_act=["silu"]), "hidden_act: expected one of silu"),
        (dict(torch_dtype=["float32"]), "torch_dtype: expected one of"),
        (dict(model_type=dict()), "model_type: expected one of llama"),
        (dict(architectures="LlamaForCausalLM"), "architectures: expected LlamaForCausalLM"),
        (dict(eos_token_id=128256), "eos_token_id: expected token ids from 0 to 128255, got 128256"),
        (dict(eos_token_id=[2, None]), "eos_token_id: expected token ids"),
        (dict(layer_types=["sliding_attention"] * 32), "layer_types: expected only full_attention"),
        (dict(layer_types=7), "layer_types: expected 32 of"),
        (
            dict(model_type="qwen2", architectures=None, max_window_layers="many"),
            "max_window_layers: expected a non-neg",
        ),
        (dict(rope_interleaved=True), "rope_interleaved: not supported"),
        (dict(use_mrope=True), "use_mrope: not supported"),
        (dict(use_bidirectional_attention=True), "use_bidirectional_attention: not supported"),
        (dict(is_causal=False), "is_causal: False is not supported"),
        (dict(sliding_window=4096), "sliding_window: not supported"),
        (dict(vision_config=dict(depth=1)), "vision_config: not supported"),
        (dict(quantization=dict(bits=4)), "quantization: not supported"),
        (dict(embedding_multiplier=12.0), "embedding_multiplier: 12.0 is not supported"),
        ({"a\nb": 1}, "'a\\nb': not supported"),
        (dict(quantization_config=dict(quant_method="awq")), "quantization_config.bits: missing"),
        (dict(quantization_config=4), "quantization_config: expected an object, got 4"),
        (dict(auto_map=dict(AutoModel="x.Y")), "auto_map: "),
        (dict(num_local_experts=8), "num_local_experts: not supported in a config of llama"),
        (dict(hidden_act="relu"), "hidden_act: expected one of silu"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor: 0.5 is not supported"),
        (dict(num_key_value_heads=5), "num_key_value_heads: expected a divisor"),
        (dict(hidden_size=None), "hidden_size: missing"),
        (dict(hidden_size=100), "hidden_size: expected a multiple of num_attention_heads"),
        (dict(num_hidden_layers="32"), "num_hidden_layers: expected a positive integer, got '32'"),
        (dict(rms_norm_eps=0), "rms_norm_eps: expected a positive number"),
        (dict(tie_word_embeddings="yes"), "tie_word_embeddings: expected true or false"),
        (dict(torch_dtype="float64"), "dtype: expected one of"),
        (dict(head_dim=15), "head_dim: expected an even number"),
        (dict(eos_token_id="</s>"), "eos_token_id: expected token ids"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ConfigError) as error:
        hf_config.from_dict(LLAMA | change)
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "change",
    [
        {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}},
        dict(use_mrope=False, sliding_window=None, use_sliding_window=False, max_window_layers=28),
        dict(unsloth_version="2024.9", unsloth_fixed=True, _attn_implementation_autoset=True, _commit_hash="0"),
        dict(pretraining_tp=2, attention_dropout=0.1, resid_pdrop=0.1, neftune_noise_alpha=5.0),
        dict(layer_types=["full_attention"] * 32, activation="swiglu", partial_rotary_factor=1.0, is_causal=True),
        dict(quantization_config=None, auto_map={}, vision_config=None, num_experts=None, qk_layer_norms=False),
        dict(temperature=0.6, top_p=0.9, max_length=4096, do_sample=True, pad_token_id=-1),
        dict(rope_scaling=LLAMA["rope_scaling"] | dict(type="llama3", partial_rotary_factor=1.0, attn_factor=None)),
    ],
)
def test_what_changes_nothing_passes(change):
    assert hf_config.from_dict(LLAMA | change) == hf_config.from_dict(LLAMA)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file"),
        ("{", "expected JSON"),
        ("[]", "expected a JSON object, got []"),
        ("[" * 100_000, "expected JSON, got brackets nested too deeply"),
        ('{"a":' * 100_000, "expected JSON, got brackets nested too deeply"),
        ("[" * 900 + "]" * 900, "expected a JSON object"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "expected JSON"),
        ('{"vocab_size": 1, "vocab_size": 2}', "vocab_size: given twice"),
        ('{"a": {"b": 1, "b": 2}}', "b: given twice"),
        (b"\xff\xfe", "expected text in UTF-8"),
        (json.dumps(LLAMA | dict(hidden_size=-1)), "hidden_size: expected a positive integer, got -1"),
        (json.dumps(LLAMA | dict(rms_norm_eps=float("nan"))), "rms_norm_eps: expected a positive number, got nan"),
    ],
)
def test_files(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as error:
        hf_config.from_folder(tmp_path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and message in text and "\n" not in text and len(text) < 400


@pytest.mark.parametrize(
    "content, message",
    [
        ("[" * 100_000, "brackets nested too deeply"),
        ('{"eos_token_id": 1.5}', "eos_token_id: expected token ids from 0 to 128255, got 1.5"),
        ('{"bos_token_id": true}', "bos_token_id: expected token ids"),
        ('{"eos_token_id": [128256]}', "eos_token_id: expected token ids"),
        ('{"suppress_tokens": [1], "forced_eos_token_id": 2}', "forced_eos_token_id, suppress_tokens: not supported"),
    ],
)
def test_the_generation_config_is_named(tmp_path, content, message):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError) as error:
        hf_config.from_folder(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'generation_config.json'}: ") and message in str(error.value)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="expected a file"):
        hf_config.from_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.raises(ConfigError, match="expected at most 64 MiB"):
        hf_config.from_folder(tmp_path)


def test_llama3_frequencies():
    """Long wavelengths are divided by the factor, short ones kept, and the blend is between them."""
    rope = hf_config.from_dict(LLAMA).rope
    plain, scaled = frequencies(Rope(theta=rope.theta), 128), frequencies(rope, 128)
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192
    np.testing.assert_array_equal(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    between = ~short & ~long
    assert between.any() and (scaled[between] < plain[between]).all() and (scaled[between] > plain[between] / 8).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [dict(), dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                                              num_attention_heads=64)])  # fmt: skip
def test_full_sizes_have_the_right_shapes(size):
    config = hf_config.from_dict(LLAMA | size)
    model = nnx.eval_shape(lambda: Llama(config, jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == config.num_parameters
    logits = jax.eval_shape(lambda model, tokens: model(tokens), model, jax.ShapeDtypeStruct((2, 1024), jnp.int32))
    assert logits.shape == (2, 1024, config.vocab_size) and logits.dtype == jnp.float32
