"""Checkpoints quantised here: what is written, what loads, what an interruption leaves, and what is refused."""

import json
import os
import shutil
from collections import namedtuple
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import pallas_kernels as pk
from tokenspeed import LLM, SamplingParams
from tokenspeed.models import compressed_tensors, hf_config
from tokenspeed.models.quantisation import PACKED, Scheme
from tokenspeed.weights import checkpoint
from tokenspeed.weights.convert import convert
from tokenspeed.weights.entries import entries
from tokenspeed.weights.packing import encoded
from tokenspeed.weights.recipe import Recipe, quantisation_of
from tokenspeed.weights.rounding import rounded
from tokenspeed.weights.shards import CheckpointError, opened
from tokenspeed.weights.tiny import TINY

CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=44, hidden_size=64, intermediate_size=96,
    num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
    rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True, torch_dtype="bfloat16",
)  # fmt: skip
INT4 = Recipe(weights="int4", group_size=32)
SHARD = 10_000
"""Bytes: the model takes several."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a model of random weights, biases too, and files around it."""
    folder = tmp_path_factory.mktemp("convert") / "model"
    folder.mkdir()
    rng = np.random.default_rng(0)
    parts = [part for entry in entries(hf_config.from_dict(CONFIG)) for part in entry.parts]
    tensors = {part.name: (0.05 * rng.standard_normal(part.shape)).astype(jnp.bfloat16) for part in parts}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps(dict(eos_token_id=2)))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    for name in (".hidden", "optimizer.pt", "consolidated.safetensors", "other.gguf"):
        (folder / name).write_text("not to be copied")
    return folder


def tensors_of(folder):
    with opened(folder) as found:
        return {name: tensor.read() for name, tensor in found.items()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


RECIPES = {
    "int4-fp8-head": Recipe(weights="int4", group_size=32, head="fp8"),
    "int4": INT4,
    "int4-zeros": Recipe(weights="int4", group_size=16, symmetric=False, head="same"),
    "int8": Recipe(weights="int8"),
    "int8-zeros": Recipe(weights="int8", symmetric=False, ignore=("re:.*down_proj",)),
    "int8-groups": Recipe(weights="int8", group_size=32, head="int8"),
    "fp8": Recipe(weights="fp8", head="same", ignore=("model.layers.0.self_attn.o_proj",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_what_is_loaded_is_what_was_rounded(name, source, tmp_path):
    recipe = RECIPES[name]
    convert(source, tmp_path / "out", recipe, shard_bytes=SHARD)
    config = hf_config.from_folder(tmp_path / "out")
    quantisation = quantisation_of(hf_config.from_folder(source), recipe)
    assert config.quantisation == quantisation
    exact = tensors_of(source)
    for module, *_ in config.projections():
        if (scheme := quantisation.scheme_of(module)) is not None:
            stored, scales, zeros = rounded(
                exact[f"{module}.weight"], scheme.format, group=scheme.group, symmetric=not scheme.zeros,
                scale_dtype="bfloat16",
            )  # fmt: skip
            wide = lambda x, count=stored.shape[1] // scales.shape[1]: np.repeat(x.astype(np.float32), count, axis=1)
            exact[f"{module}.weight"] = (stored.astype(np.float32) - (wide(zeros) if scheme.zeros else 0)) * wide(
                scales
            )
    model = checkpoint.load(tmp_path / "out", dtype="float32")
    for entry in entries(config):
        expected = entry.join(*(jnp.asarray(exact[part.name], jnp.float32) for part in entry.parts))
        *path, kind = map(str, entry.path)
        owner: Any = model
        for step in path:
            owner = owner[int(step)] if step.isdigit() else getattr(owner, step)
        if kind == "values" and isinstance(owner.weight, pk.QuantisedWeight):
            np.testing.assert_allclose(pk.dequantise(owner.weight), expected, rtol=1e-6, atol=0)
        else:
            np.testing.assert_array_equal(getattr(owner, kind)[...], expected)


def test_what_is_in_the_folder(source, tmp_path):
    before, after = convert(source, tmp_path / "out", INT4, shard_bytes=SHARD)
    found = contents(tmp_path / "out")
    shards = sorted(name for name in found if name.startswith("model-"))
    index = json.loads(found["model.safetensors.index.json"])
    assert len(shards) > 2 and set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == after < before
    for name in shards:
        with safe_open(tmp_path / "out" / name, framework="np") as file:
            size = len(found[name]) - 8 - int.from_bytes(found[name][:8], "little")
            assert size <= SHARD
            assert file.metadata() == {"format": "pt"}
    assert set(found) == {*shards, "model.safetensors.index.json", "config.json", "generation_config.json",
                          "chat_template.jinja"}  # fmt: skip
    assert found["chat_template.jinja"] == b"{{ messages }}"
    assert not (tmp_path / "out.partial").exists()
    config = json.loads(found["config.json"])
    eight = dict(dynamic=False, group_size=None, num_bits=8, strategy="channel", symmetric=True, type="int")
    assert config.pop("quantization_config") == dict(
        quant_method="compressed-tensors", version=compressed_tensors.VERSION, format="pack-quantized",
        quantization_status="compressed", global_compression_ratio=None, kv_cache_scheme=None,
        moe_sparsity_config=None, sparsity_config={}, transform_config={}, ignore=[],
        config_groups=dict(
            group_0=dict(
                targets=["Linear"], format="pack-quantized", input_activations=None, output_activations=None,
                weights=eight | dict(num_bits=4, strategy="group", group_size=32),
            ),
            group_1=dict(
                targets=["lm_head"], format="pack-quantized", input_activations=None, output_activations=None,
                weights=eight,
            ),
        ),
    )  # fmt: skip
    assert config == CONFIG


def test_packed_words():
    """Outputs and inputs that fill no word: numbers from the lowest bits up, each with half of the range added."""
    scheme = Scheme(layout=PACKED, format="int4", group=2, zeros=True)
    values = np.array([[-8, 7, 0, 1, 2, 3, 4, 5, -1, -2]], np.int8)
    found = encoded(scheme, values, np.ones((1, 5), np.float16), np.array([[1, 2, 3, 4, -8]], np.int8))
    np.testing.assert_array_equal(found["weight_packed"].view(np.uint32), [[0xDCBA98F0, 0x67]])
    np.testing.assert_array_equal(found["weight_zero_point"], [[9, 10, 11, 12, 0]])
    assert found["weight_shape"].tolist() == [1, 10] and found["weight_shape"].dtype == np.int64
    eight = encoded(Scheme(layout=PACKED, format="int8"), values, np.ones((1, 1), np.float16), None)
    assert eight["weight_packed"].view(np.uint8).tolist() == [[120, 135, 128, 129, 130, 131, 132, 133, 127, 126, 0, 0]]


@pytest.mark.parametrize("times", [1, 5, 8])
def test_an_interrupted_run_goes_on(times, source, tmp_path, monkeypatch):
    """It leaves no folder that loads, and what it has finished is not done again; the bytes are those of one run."""
    convert(source, tmp_path / "whole", INT4, shard_bytes=SHARD)
    calls = []

    def counted(*args, **options):
        calls.append(1)
        if len(calls) == times:
            raise KeyboardInterrupt
        return rounded(*args, **options)

    monkeypatch.setattr("tokenspeed.weights.convert.rounded", counted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", INT4, shard_bytes=SHARD)
    assert not (tmp_path / "out").exists()
    for folder in (tmp_path / "out.partial", tmp_path / "out.partial" / "folder"):
        with pytest.raises(ValueError):
            checkpoint.load(folder)
    convert(source, tmp_path / "out", INT4, shard_bytes=SHARD)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()
    assert len(calls) <= 8 + 3  # what a shard holds, and the call that failed


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(recipe=Recipe(weights="int8")), "begun with other options: group_size 32, now None; weights 'int4', now"),
        (dict(shard_bytes=SHARD + 1), f"begun with other options: shard_bytes {SHARD}, now {SHARD + 1}"),
        (dict(touch="model.safetensors"), "begun from other files than now: model.safetensors; remove it"),
        (dict(touch="config.json"), "begun from other files than now: config.json; remove it"),
    ],
)
def test_another_command_does_not_go_on(change, message, source, tmp_path, monkeypatch):
    shutil.copytree(source, tmp_path / "model")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("tokenspeed.weights.convert.shutil.copyfile", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(tmp_path / "model", out, INT4, shard_bytes=SHARD)
    if "touch" in change:
        os.utime(tmp_path / "model" / change["touch"], ns=(0, 5))
    before = contents(tmp_path / "out.partial" / "folder")
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path / "model", out, change.get("recipe", INT4), shard_bytes=change.get("shard_bytes", SHARD))
    assert f"out.partial: was {message}" in str(error.value) and "\n" not in str(error.value)
    assert not out.exists() and contents(tmp_path / "out.partial" / "folder") == before


def test_a_source_that_changes_meanwhile(source, tmp_path, monkeypatch):
    shutil.copytree(source, tmp_path / "model")

    def changing(*args, **options):
        os.utime(tmp_path / "model" / "config.json", ns=(0, 5))
        return rounded(*args, **options)

    monkeypatch.setattr("tokenspeed.weights.convert.rounded", changing)
    with pytest.raises(CheckpointError, match=r"config\.json: changed while it was converted"):
        convert(tmp_path / "model", tmp_path / "out", INT4)
    assert not (tmp_path / "out").exists()


def test_no_room(source, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("tokenspeed.weights.convert.shutil.disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(CheckpointError, match=r"out: takes 0\.0 GB of disk, 0\.0 GB are free$"):
        convert(source, tmp_path / "out", INT4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "recipe, change, message",
    [
        (dict(weights="int3"), {}, "weights: expected one of int4, int8, fp8, got 'int3'"),
        (
            dict(weights="int4"), {},
            "group_size: expected a divisor of all inputs, as 32 is; model.layers.0.self_attn.q_proj has 64, got 128",
        ),
        (dict(weights="int4", group_size=64), {}, "as 32 is; model.layers.0.mlp.down_proj has 96, got 64"),
        (dict(weights="int4", group_size=64), dict(intermediate_size=63), "as 1 is; model.layers.0.mlp.down_proj"),
        (dict(weights="int4", group_size=0), {}, "group_size: expected an integer from 1 to"),
        (dict(weights="fp8", group_size=32), {}, "group_size: expected none with fp8"),
        (dict(weights="fp8", symmetric=False), {}, "symmetric: expected int4 or int8 for zero points, got fp8"),
        (dict(weights="int8", head="int4"), {}, "head: expected one of int8, fp8, none, same, got 'int4'"),
        (
            dict(weights="int8", head="int8"), dict(tie_word_embeddings=True),
            "head: expected none, since the model's head is its embedding table, got int8",
        ),
        (dict(weights="int8", head="int8", ignore=("lm_head",)), {}, "head: expected none, since ignore names lm_head"),
        (dict(weights="int8", ignore=("q_proj",)), {}, "ignore: q_proj is no projection; they are named as"),
        (dict(weights="int8", ignore=("re:(",)), {}, "ignore: expected a regular expression after re:, got 're:('"),
        (dict(weights="int8", ignore=("re:.*",)), {}, "ignore: expected some projection that is left"),
    ],
)  # fmt: skip
def test_recipes_that_are_refused(recipe, change, message):
    config = hf_config.from_dict(CONFIG | change)
    with pytest.raises((ValueError, TypeError)) as error:
        quantisation_of(config, Recipe(**recipe))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_head_by_default():
    """It is in int8 with int4, and not quantised otherwise; a table is never."""
    plain, tied = hf_config.from_dict(CONFIG), hf_config.from_dict(CONFIG | dict(tie_word_embeddings=True))

    def head(config, recipe):
        scheme = quantisation_of(config, recipe).scheme_of("lm_head")
        return None if scheme is None else scheme.format

    assert head(plain, INT4) == "int8" and head(plain, Recipe(weights="int8")) is None
    assert head(tied, INT4) is None and quantisation_of(tied, INT4).ignored == ("lm_head",)
    assert head(plain, Recipe(weights="int4", group_size=32, ignore=("lm_head",))) is None
    assert head(plain, Recipe(weights="int4", group_size=32, head="same")) == "int4"


def refused(message, *args, **options):
    with pytest.raises(ValueError) as error:
        convert(*args, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_converted(source, tmp_path):
    (tmp_path / "there").mkdir()
    refused("there: exists already", source, tmp_path / "there", INT4)
    refused("k_proj, model.layers.0.self_attn.q_proj, model.layers.0.self_attn.v_proj: expected them to be quantised "
            "alike", source, tmp_path / "out", Recipe(weights="int8", ignore=("re:.*q_proj",)))  # fmt: skip
    shutil.copytree(source, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG | dict(model_type="gpt2")))
    refused("model_type: expected one of llama", tmp_path / "model", tmp_path / "out", INT4)
    raw = CONFIG | dict(quantization_config=dict(quant_method="awq", bits=4))
    (tmp_path / "model" / "config.json").write_text(json.dumps(raw))
    refused("expected weights that are not quantised", tmp_path / "model", tmp_path / "out", INT4)
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG | dict(num_hidden_layers=2)))
    refused("tensors missing: model.layers.1", tmp_path / "model", tmp_path / "out", INT4)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    (tmp_path / "out.partial" / "folder").mkdir(parents=True)
    (tmp_path / "out.partial" / "folder" / "mine").write_text("")
    refused("state.json: No such file", source, tmp_path / "out", INT4)


def test_weights_that_are_not_finite(source, tmp_path):
    shutil.copytree(source, tmp_path / "model")
    tensors = tensors_of(source)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    refused(f"{name}: expected finite numbers", tmp_path / "model", tmp_path / "out", INT4)


@pytest.mark.slow
@pytest.mark.usefixtures("programs_run_often")
def test_the_small_model_says_the_same_in_int8(tmp_path):
    """Its most likely tokens along its own text."""
    plain = LLM.from_pretrained("tiny", dtype="float32", max_context=128, implementation="xla")
    (text,) = plain.generate(["Once upon a time"], SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
    ids = jnp.asarray([[*text.prompt_token_ids, *text.token_ids]], jnp.int32)
    expected = jnp.argmax(plain.model(ids), -1)
    for weights, least in (("int8", 0.97), ("fp8", 0.9), ("int4", 0.8)):
        convert(TINY, tmp_path / weights, Recipe(weights=weights))
        found = checkpoint.load(tmp_path / weights, dtype="float32")(ids)
        assert float(jnp.mean(jnp.argmax(found, -1) == expected)) >= least, weights


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_compressed_tensors_library_reads_it(name, source, tmp_path):
    """Its config is what the library would write, its weights unpack to ours, and are packed again to the same bits."""
    torch = pytest.importorskip("torch")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from safetensors.torch import load_file

    convert(source, tmp_path / "out", RECIPES[name])
    raw = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    read = quantization.QuantizationConfig.model_validate(raw)
    outer = ("version", "sparsity_config", "transform_config")
    assert read.model_dump(mode="json") == {field: value for field, value in raw.items() if field not in outer}
    quantisation = quantisation_of(hf_config.from_dict(CONFIG), RECIPES[name])
    tensors, exact = load_file(tmp_path / "out" / "model.safetensors"), tensors_of(source)
    for module, *_ in hf_config.from_dict(CONFIG).projections():
        scheme = quantisation.scheme_of(module)
        if scheme is None:
            continue
        theirs = list(read.config_groups.values())[[one for _, one in quantisation.schemes].index(scheme)]
        compressor = compressors.BaseCompressor.get_value_from_registry(theirs.format)
        state = {end: tensors[f"{module}.{end}"] for end in compressor.compression_param_names(theirs)}
        state["weight_scale"] = state["weight_scale"].float()
        weight = compressor.decompress(state, theirs)
        again = compressor.compress(weight, theirs)
        assert all(torch.equal(again[end].float(), state[end].float()) for end in state)
        original = exact[f"{module}.weight"].astype(np.float32)
        error = np.linalg.norm(weight["weight"].numpy() - original) / np.linalg.norm(original)
        assert error < (0.13 if scheme.format == "int4" else 0.03)
