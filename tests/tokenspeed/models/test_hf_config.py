"""What a config.json means, and what is refused by name."""

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
            "rope_type: expected default, linear or llama3, got 'yarn'",
        ),
        (dict(rope_scaling=dict(rope_type="linear", factor=4.0, beta_fast=32)), "beta_fast: not supported"),
        (dict(rope_scaling=dict(rope_type="linear")), "factor: missing"),
        (dict(quantization_config=dict(quant_method="awq")), "quantization_config: "),
        (dict(auto_map=dict(AutoModel="x.Y")), "auto_map: "),
        (dict(num_local_experts=8), "num_local_experts: not supported in a config of llama"),
        (dict(hidden_act="relu"), "hidden_act: expected one of silu"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor: 0.5 is not supported"),
        (dict(pretraining_tp=2), "pretraining_tp: 2 is not supported"),
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
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files(tmp_path):
    for content, message in ((None, "No such file"), ("{", "expected JSON"), ("[]", "expected a JSON object")):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=message):
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
