"""Loading: what arrives, what is refused, and what is never half done."""

import contextlib
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tokenspeed.models import hf_config
from tokenspeed.models.decoder import Llama
from tokenspeed.weights import checkpoint
from tokenspeed.weights.checkpoint import CheckpointError

CONFIG = dict(
    model_type="llama", vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=6, num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rms_norm_eps=1e-5,
    attention_bias=True, mlp_bias=True, torch_dtype="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    built = Llama(hf_config.from_dict(CONFIG), rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    for entry in checkpoint.entries(built.config):  # biases start as zeros and norms as ones: nothing may hide there
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


def test_shards(model, folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for i in range(3):
        file = f"model-{i}.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, folder / file)
        places |= dict.fromkeys(names[i::3], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=places)))
    assert equal(checkpoint.load(folder), model)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing model-1"):
        checkpoint.load(folder)


def test_the_host_holds_one_parameter_at_a_time(folder, monkeypatch):
    """So that its peak is far below twice a shard, whatever the size of the model."""
    alive, peak, opened = [0], [0], checkpoint.opened

    class Counted:
        def __init__(self, handle):
            self.get_slice, self.handle = handle.get_slice, handle

        def get_tensor(self, name):
            tensor = self.handle.get_tensor(name)
            alive[0] += tensor.nbytes
            peak[0] = max(peak[0], alive[0])
            weakref.finalize(tensor, lambda size=tensor.nbytes: alive.__setitem__(0, alive[0] - size))
            return tensor

    @contextlib.contextmanager
    def counting(files):
        with opened(files) as tensors:
            yield {name: Counted(handle) for name, handle in tensors.items()}

    monkeypatch.setattr(checkpoint, "opened", counting)
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
        checkpoint.files_of(tmp_path / "nowhere")
    (folder / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=dict(a="../other.safetensors"))))
    with pytest.raises(CheckpointError, match="expected safetensors files of the folder"):
        checkpoint.load(folder)


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
