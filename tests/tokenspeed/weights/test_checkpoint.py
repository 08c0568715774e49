"""Loading: what arrives, what is refused, and what is never half done."""

import json
import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tokenspeed.models import hf_config
from tokenspeed.models.config import ConfigError
from tokenspeed.models.decoder import Llama
from tokenspeed.weights import checkpoint, entries
from tokenspeed.weights.shards import CheckpointError, Stored

CONFIG = dict(
    model_type="llama", vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=6, num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rms_norm_eps=1e-5,
    attention_bias=True, mlp_bias=True, torch_dtype="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    built = Llama(hf_config.from_dict(CONFIG), rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    for entry in entries.entries(built.config):  # biases start as zeros and norms as ones: nothing may hide there
        old = checkpoint.found_at(built, entry.path)
        checkpoint.place(built, entry.path, jnp.asarray(random.standard_normal(old.shape), old.dtype))
    return built


@pytest.fixture
def folder(model, tmp_path):
    checkpoint.save(tmp_path / "model", model, {"config.json": CONFIG})
    return tmp_path / "model"


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.slow
def test_saved_and_loaded(model, folder):
    assert equal(checkpoint.load(folder), model)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (16, 24)
    assert tensors["model.layers.0.mlp.gate_proj.bias"].shape == (40,)
    half = checkpoint.load(folder, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoint.save(folder, model)


def in_shards(folder, shards, places=None):
    """Writes tensors anew, in shards by file name; the index says where they are, or `places`."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    if places is None:
        places = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=places)))


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NORM = "model.norm.weight"


@pytest.fixture
def halves(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    return {ONE: {n: tensors[n] for n in names[::2]}, TWO: {n: tensors[n] for n in names[1::2]}}


def test_shards(model, folder, halves):
    in_shards(folder, halves)
    (folder / "consolidated.safetensors").write_bytes(b"another layout, which Mistral ships beside this one")
    assert equal(checkpoint.load(folder), model)
    (folder / ONE).unlink()
    with pytest.raises(CheckpointError, match=f"missing {ONE}"):
        checkpoint.load(folder)


def test_of_a_tensor_in_two_shards_the_index_decides(model, folder, halves):
    places = {name: file for file, tensors in halves.items() for name in tensors}
    (other,) = {ONE, TWO} - {places[NORM]}
    halves[other][NORM] = np.full(24, 9.0, np.float32)
    in_shards(folder, halves, places)
    assert equal(checkpoint.load(folder), model)
    in_shards(folder, halves, places | {NORM: other})
    assert (checkpoint.load(folder).norm[...] == 9).all()


def refused(folder, *expected):
    with pytest.raises((CheckpointError, ConfigError)) as error:
        checkpoint.load(folder)
    text = str(error.value)
    assert all(part in text for part in expected), text
    assert "\n" not in text and len(text) < 1000, text


def test_an_index_and_files_that_contradict_each_other(folder, halves):
    places = {name: file for file, tensors in halves.items() for name in tensors}
    (other,) = {ONE, TWO} - {places[NORM]}
    index = "model.safetensors.index.json: "
    in_shards(folder, halves, places | {NORM: other})
    refused(folder, index, f"names tensors that are not there: {NORM} in {other}")
    in_shards(folder, halves, places | {"a\nb": ONE})
    refused(folder, index, f"'a\\nb in {ONE}'")
    in_shards(folder, halves, {name: file for name, file in places.items() if name != NORM})
    refused(folder, index, f"does not name tensors of its files: {NORM}")
    in_shards(folder, halves)
    save_file({"a": np.zeros(1, np.float32)}, folder / "model.safetensors")
    refused(folder, f"expected weights in {ONE}, {TWO} alone, got model.safetensors beside them")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, f"missing model.safetensors; {ONE}, {TWO}: expected model.safetensors.index.json with them")


@pytest.mark.parametrize(
    "content, message",
    [
        ("[" * 100_000, "brackets nested too deeply"),
        ("{}", "weight_map: expected an object of file names, got None"),
        ('{"weight_map": {}}', "weight_map: expected an object of file names"),
        ('{"weight_map": ["a"]}', "weight_map: expected an object of file names, got ['a']"),
        ('{"weight_map": {"a": 1}}', "weight_map.a: expected safetensors files of the folder, got 1"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "weight_map.a: expected safetensors files of the folder"),
        ('{"weight_map": {"a": "/a.safetensors"}}', "weight_map.a: expected safetensors files of the folder"),
        ('{"weight_map": {"a": "a.bin"}}', "weight_map.a: expected safetensors files of the folder"),
        ('{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}', "a: given twice"),
    ],
)
def test_a_broken_index(folder, content, message):
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, "model.safetensors.index.json: ", message)


@pytest.mark.parametrize("name", ["a\0", "x" * 300])
def test_impossible_names_of_files(folder, name):
    in_shards(folder, {}, {"a": f"{name}.safetensors"})
    refused(folder, "missing ")


@pytest.mark.parametrize("stored", ["I8", "U8", "BOOL", "I64", "I32", "F8_E4M3", "F8_E5M2", "C64"])
def test_dtypes_that_are_no_weights(folder, stored):
    tensors = load_file(folder / "model.safetensors")
    wide = {"I64": 8, "I32": 4, "C64": 8}.get(stored, 1)
    header, start, data = {}, 0, b""
    for name, tensor in tensors.items():
        kind, bytes_ = ("F32", tensor.tobytes()) if name != NORM else (stored, bytes(wide * tensor.size))
        header[name] = dict(dtype=kind, shape=tensor.shape, data_offsets=[start, start + len(bytes_)])
        start, data = start + len(bytes_), data + bytes_
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    refused(folder, f"of another dtype: {NORM} {stored} in model.safetensors instead of F32 or BF16 or F16 or F64")


@pytest.mark.slow
@pytest.mark.parametrize("stored", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_dtypes_that_are_weights(model, folder, stored):
    tensors = {name: tensor.astype(stored) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    norm = checkpoint.load(folder).norm[...]
    assert norm.dtype == np.float32
    np.testing.assert_array_equal(norm, np.asarray(model.norm[...]).astype(stored).astype(np.float32))


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b"", b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"\xff"]
)
def test_broken_headers(folder, header):
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(folder, "not readable as safetensors", "model.safetensors (")


def test_a_config_of_another_size_names_some_tensors(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | dict(num_hidden_layers=400)))
    refused(folder, "missing: model.layers.10.", "and 6358 more")


@pytest.mark.slow
def test_the_host_holds_one_parameter_at_a_time(folder, monkeypatch):
    """So that its peak is far below twice a shard, whatever the size of the model."""
    alive, peak, read = [0], [0], Stored.read

    def counted(stored):
        tensor = read(stored)
        alive[0] += tensor.nbytes
        peak[0] = max(peak[0], alive[0])
        weakref.finalize(tensor, lambda size=tensor.nbytes: alive.__setitem__(0, alive[0] - size))
        return tensor

    monkeypatch.setattr(Stored, "read", counted)
    model = checkpoint.load(folder, dtype="bfloat16")  # converted, or the CPU would keep the host's array itself
    largest = max(2 * leaf.nbytes for leaf in jax.tree.leaves(model))
    # What is dropped may wait for Python and the device for one parameter more.
    assert 0 < peak[0] <= 2 * largest


def test_every_wrong_tensor_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.0.self_attn.q_proj.bias"]
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((39, 24), np.float32)
    tensors["model.layers.0.mlp.experts.0.weight"] = np.zeros(3, np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(folder)
    text = str(error.value)
    assert "missing: model.layers.0.self_attn.q_proj.bias, model.norm.weight" in text
    assert "unexpected: model.layers.0.mlp.experts.0.weight" in text
    assert "model.layers.1.mlp.up_proj.weight [39, 24] instead of [40, 24]" in text
    assert "inv_freq" not in text and "\n" not in text


def test_a_file_cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="perhaps cut short: model"):
        checkpoint.load(folder)


def test_pickles_and_wrong_folders(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"missing model.safetensors; pytorch_model.bin: pickles are not loaded"):
        checkpoint.load(folder)
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint.load(tmp_path / "nowhere", hf_config.from_dict(CONFIG))


def test_a_save_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path / "model", model)
    assert not (tmp_path / "model").exists()


def test_a_tied_head_in_the_file_is_left_out(folder):
    config = dict(CONFIG, tie_word_embeddings=True)
    loaded = checkpoint.load(folder, hf_config.from_dict(config))
    assert loaded.head is None and loaded.head_weight.shape == (50, 24)
