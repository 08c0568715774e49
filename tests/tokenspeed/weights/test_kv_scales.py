"""Scales of keys and values that a checkpoint of compressed-tensors has."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.tokenspeed.weights.test_quantised import CONFIG, LAYER, refused, save, written
from tokenspeed import LLM, SamplingParams
from tokenspeed.models import hf_config
from tokenspeed.models.config import ConfigError
from tokenspeed.models.kv_dtypes import parse
from tokenspeed.models.kv_scales import scales_for
from tokenspeed.weights import checkpoint

FP8 = dict(num_bits=8, type="float", strategy="tensor", dynamic=False, symmetric=True)


def with_scales(path, scheme, k, v, layout="fp8-tensor"):
    """A checkpoint of one layer with these scales; None leaves one out."""
    tensors, _, config = written(path, layout, kv_cache_scheme=scheme)
    scales = {f"{LAYER}self_attn.{name}_scale": value for name, value in (("k", k), ("v", v)) if value is not None}
    save(path, tensors | scales, config)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (1,), (2,), (2, 1, 1)])
def test_scales_of_a_layer_and_of_a_head(tmp_path, shape):
    k, v = np.full(shape, 0.25, np.float32), (0.125 * np.arange(1, 1 + np.prod(shape, dtype=int))).reshape(shape)
    model = checkpoint.load(with_scales(tmp_path / "model", FP8, k, v.astype(np.float16)), dtype="bfloat16")
    found = scales_for(model, parse("", "fp8", "bfloat16"))
    np.testing.assert_array_equal(found.k, [[0.25, 0.25]])
    np.testing.assert_array_equal(found.v, [[0.125, 0.25 if v.size == 2 else 0.125]])
    assert scales_for(model, parse("", "auto/fp8", "bfloat16")).k is None
    other = scales_for(model, parse("", "int8", "bfloat16"))
    assert (other.k != 0.25).all(), "they are for fp8"


@pytest.mark.slow
def test_an_engine_stores_in_their_units(tmp_path):
    path = with_scales(tmp_path / "model", dict(FP8, type="int"), np.float32([0.5]), np.float32([0.25]))
    for kv_dtype in ("auto", "int8", "fp8"):
        llm = LLM(checkpoint.load(path), kv_dtype=kv_dtype, implementation="xla", max_batch=1)
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2, temperature=0))
    model = checkpoint.load(path)
    found = scales_for(model, parse("", "int8", "float32"))
    np.testing.assert_array_equal((found.k, found.v), [[[0.5, 0.5]], [[0.25, 0.25]]])
    np.testing.assert_array_equal(scales_for(model, parse("", "fp8", "float32")).k, [[1, 1]])


def test_a_checkpoint_of_scales_alone(tmp_path):
    """Nothing but the cache is quantised."""
    scheme = dict(quant_method="compressed-tensors", format="dense", config_groups={}, kv_cache_scheme=FP8)
    quantised = hf_config.from_dict(CONFIG | dict(quantization_config=scheme))
    plain = hf_config.from_dict(CONFIG)
    assert quantised.quantisation is not None and quantised.quantisation.kv == "fp8"
    assert quantised.weights_bytes(2) == plain.weights_bytes(2)
    model = LLM.random(plain, dtype="float32", implementation="xla").model
    checkpoint.save(tmp_path / "model", model, {"config.json": CONFIG | dict(quantization_config=scheme)})
    file = tmp_path / "model/model.safetensors"
    scales = {f"{LAYER}self_attn.{name}_scale": np.full(1, 0.5, np.float32) for name in "kv"}
    save_file(load_file(file) | scales, file)
    loaded = checkpoint.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.kv_scales.k, [[0.5, 0.5]])


@pytest.mark.parametrize(
    "k, v, message",
    [
        (np.ones(1, np.float32), None, "tensors missing: model.layers.0.self_attn.v_scale"),
        (np.ones(3, np.float32), np.ones(1, np.float32), "self_attn.k_scale: expected a floating-point number, or 2"),
        (np.ones(1, np.float32), np.zeros(1, np.float32), "self_attn.v_scale: expected positive numbers, got 0.0"),
        (np.float32([np.nan]), np.ones(1, np.float32), "self_attn.k_scale: expected positive numbers, got nan"),
        (np.ones(1, np.int32), np.ones(1, np.float32), "self_attn.k_scale: expected a floating-point number, or 2"),
    ],
)
def test_scales_that_are_wrong(tmp_path, k, v, message):
    refused(with_scales(tmp_path / "model", FP8, k, v), message)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(num_bits=4), "quantization_config.kv_cache_scheme.num_bits: expected 8, got 4"),
        (dict(type="nf4"), "quantization_config.kv_cache_scheme.type: expected one of int, float, got 'nf4'"),
        (dict(symmetric=False), "quantization_config.kv_cache_scheme.symmetric: false is not supported"),
        (dict(dynamic=True), "quantization_config.kv_cache_scheme.dynamic: True is not supported"),
        (dict(strategy="group"), "quantization_config.kv_cache_scheme.strategy: expected one of tensor, attn_head"),
    ],
)
def test_schemes_that_are_not_supported(change, message):
    scheme = dict(quant_method="compressed-tensors", format="dense", config_groups={}, kv_cache_scheme=FP8 | change)
    with pytest.raises(ConfigError) as error:
        hf_config.from_dict(CONFIG | dict(quantization_config=scheme))
    assert message in str(error.value)
