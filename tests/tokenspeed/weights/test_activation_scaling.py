"""Scaling by activations: the model stays the same, and its rounded projections err less on the text."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.tokenspeed.weights.test_convert import CONFIG
from tokenspeed.models import hf_config
from tokenspeed.weights import activation_scaling
from tokenspeed.weights.convert import convert
from tokenspeed.weights.entries import entries
from tokenspeed.weights.recipe import Recipe, quantisation_of
from tokenspeed.weights.rounding import restored
from tokenspeed.weights.shards import opened
from tokenspeed.weights.tiny import TINY

RECIPE = Recipe(weights="int4", group_size=32)
TEXT = "Once upon a time there was a little dog who liked to run in the park with a red ball. " * 4


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model some of whose channels are much larger than others behind each norm."""
    folder = tmp_path_factory.mktemp("scaling")
    rng = np.random.default_rng(0)
    tensors = {}
    for entry in entries(hf_config.from_dict(CONFIG)):
        for part in entry.parts:
            size = 1 + 20 * (rng.uniform(size=part.shape) < 0.05) if "norm" in part.name else 0.1
            tensors[part.name] = (size * rng.standard_normal(part.shape)).astype(jnp.bfloat16)
    tensors["model.layers.0.input_layernorm.weight"][3] = 0
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def scaled(folder, recipe=RECIPE):
    config = hf_config.from_folder(folder)
    config = dataclasses.replace(config, quantisation=quantisation_of(config, recipe))
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (4, 32)).astype(np.int32)
    with opened(folder) as tensors:
        return activation_scaling.found(config, tensors, ids), {name: x.read() for name, x in tensors.items()}


@pytest.mark.slow
def test_what_follows_a_norm_stays_the_same_and_errs_less(source):
    scaling, tensors = scaled(source)
    assert set(scaling.norms) == {f"model.layers.0.{x}_layernorm.weight" for x in ("input", "post_attention")}
    projections = [f"self_attn.{x}_proj" for x in "qkv"] + ["mlp.gate_proj", "mlp.up_proj"]
    assert set(scaling.columns) == {f"model.layers.0.{x}.weight" for x in projections}
    rng = np.random.default_rng(2)
    for norm, names in (("input", projections[:3]), ("post_attention", projections[3:])):
        norm = f"model.layers.0.{norm}_layernorm.weight"
        before, after = (x[norm].astype(np.float32) for x in (tensors, scaling.norms))
        assert scaling.norms[norm].dtype == jnp.bfloat16 and not np.array_equal(before, after)
        errors = []
        for name in names:
            name = f"model.layers.0.{name}.weight"
            values = tensors[name].astype(np.float32)
            columns = scaling.columns[name]
            np.testing.assert_allclose(after * values * columns, before * values, rtol=1e-6)
            rounded = [
                np.asarray(restored(jnp.asarray(x), "int4", group=32, symmetric=True, scale_dtype="bfloat16"))
                for x in (values, values * columns)
            ]
            x = rng.standard_normal((256, 64)).astype(np.float32)
            exact = (x * before) @ values.T
            errors.append([np.sum(((x * w) @ r.T - exact) ** 2) for w, r in zip((before, after), rounded, strict=True)])
        plain, with_scales = np.sum(errors, axis=0)
        assert with_scales < 0.9 * plain


@pytest.mark.slow
def test_projections_that_are_not_quantised_are_not_scaled(source):
    scaling, _ = scaled(source, dataclasses.replace(RECIPE, ignore=("re:.*(gate|up)_proj",)))
    assert list(scaling.norms) == ["model.layers.0.input_layernorm.weight"] and len(scaling.columns) == 3


def test_a_text_of_few_tokens_and_a_folder_without_tokenizer(source, tmp_path):
    with pytest.raises(ValueError, match="text: expected at least 32 tokens, got"):
        convert(TINY, tmp_path / "out", RECIPE, text="Too short.")
    with pytest.raises(ValueError, match=r"text: .* has no tokenizer"):
        convert(source, tmp_path / "out", RECIPE, text=TEXT)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_scaling_is_what_is_written(tmp_path):
    convert(TINY, tmp_path / "plain", RECIPE)
    convert(TINY, tmp_path / "scaled", RECIPE, text=TEXT)
    norms = []
    for name in ("plain", "scaled"):
        with opened(tmp_path / name) as tensors:
            norms.append(tensors["model.layers.1.input_layernorm.weight"].read().astype(np.float32))
    assert not np.array_equal(*norms)
