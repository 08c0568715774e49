"""A random checkpoint is one: what loads checkpoints loads it, whole or not at all."""

import filecmp
import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench.models import config_of
from experiments.random_checkpoint import __main__ as random_checkpoint
from experiments.random_checkpoint import weights
from experiments.random_checkpoint.tokenizer import SPECIALS, make_tokenizer
from tokenspeed.models import hf_config
from tokenspeed.models.decoder import INIT_SCALE
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.weights import checkpoint
from tokenspeed.weights.shards import opened

VOCABULARY = 800
CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, hidden_act="silu",
    rms_norm_eps=1e-5, max_position_embeddings=256, rope_theta=1e4, attention_bias=True, tie_word_embeddings=False,
    torch_dtype="float32", bos_token_id=0, eos_token_id=1,
)  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """Runs the command on a small config; returns its status and the folder."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    def run(*arguments, name="made"):
        out = tmp_path / "models" / name
        command = [f"--out={out}", f"--model={tmp_path / 'config.json'}", *arguments]
        return random_checkpoint.main(command), out

    return run


def test_it_loads(make):
    status, folder = make()
    assert status == 0
    config, model, tokenizer = hf_config.from_folder(folder), checkpoint.load(folder), Tokenizer.from_folder(folder)
    assert tokenizer is not None
    assert config.vocab_size == tokenizer.vocab_size == VOCABULARY and config.dtype == "bfloat16"
    table = np.asarray(model.embedding[...], np.float32)
    assert table.std() == pytest.approx(INIT_SCALE, rel=0.05) and abs(table.mean()) < INIT_SCALE / 50
    assert (model.norm[...] == 1).all() and model.blocks[0].qkv.values[...].dtype == jnp.bfloat16
    prompt = tokenizer.encode(tokenizer.render_chat([dict(role="user", content="Hello")]))
    first = VOCABULARY - SPECIALS
    assert prompt[:2] == [first, first + 6] and tokenizer.bos_id == first and tokenizer.eos_id == first + 9
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [
        first + 1, first + 8, first + 9
    ]  # fmt: skip


def test_the_seed_says_all(make):
    (_, one), (_, same), (_, other) = make(), make(name="same"), make("--seed=1", name="other")
    files = sorted(path.name for path in one.iterdir())
    assert filecmp.cmpfiles(one, same, files, shallow=False)[0] == files
    assert set(filecmp.cmpfiles(one, other, files, shallow=False)[1]) == {"model.safetensors", "tokenizer.json"}


def test_several_shards(make, tmp_path):
    config = hf_config.from_dict(CONFIG)
    folder = make()[1]
    many = tmp_path / "many"
    many.mkdir()
    lines: list[str] = []
    weights.write(many, config, 0, most_bytes=1 << 16, told=lines.append)
    assert len(lines) == len(list(many.glob("model-*.safetensors"))) > 2
    with opened(many) as split, opened(folder) as whole:
        assert split.keys() == whole.keys()
        for name, tensor in whole.items():
            assert (tensor.read().view(np.uint16) == split[name].read().view(np.uint16)).all(), name


def test_shards_are_no_larger_than_they_may_be():
    config = config_of("llama-3.1-8b")
    found = weights.shards(config)
    sizes = [sum(weights.ITEM * np.prod(part.shape) for _, part in shard) for shard in found]
    assert sum(sizes) == weights.ITEM * config.num_parameters
    assert all(size <= weights.SHARD_BYTES or len(shard) == 1 for size, shard in zip(sizes, found))
    assert max(sizes) < 1.1e9


@pytest.mark.parametrize("where", ["save_file", "draw"])
def test_what_is_interrupted_leaves_nothing(where, make, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, where, stop)
    status, folder = make()
    assert status == 130 and list(folder.parent.iterdir()) == []


def test_a_tokenizer_alone(make):
    status, folder = make("--tokenizer_only")
    assert status == 0
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_any_text_comes_back():
    tokenizer = make_tokenizer(2000, 0)
    assert tokenizer.get_vocab_size() == 2000
    for text in ("Hello, world!\n\n 12345  x", "größer 漢字 \U0001f600", "<|eot_id|>"):
        assert tokenizer.decode(tokenizer.encode(text).ids[1:], skip_special_tokens=False) == text
    assert tokenizer.encode("<|eot_id|>", add_special_tokens=False).ids == [2000 - SPECIALS + 9]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--model=llama-3.1-8",), "model: unknown 'llama-3.1-8'; did you mean llama-3.1-8b?"),
        (("--seed=-1",), "seed: expected 0 or more, got -1"),
        (("--out=",), "out: expected the folder to write"),
        (("--out=.",), "out: . exists already"),
    ],
)
def test_mistakes_are_one_line(make, arguments, message, capsys):
    status, folder = make(*arguments)
    assert status == 2 and not folder.exists() and capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    "changed, message",
    [(dict(vocab_size=500), "vocab_size: expected 512 or more, got 500"), (dict(model_type="gpt2"), "model_type")],
)
def test_a_model_that_cannot_be_made(make, changed, message, tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(CONFIG | changed))
    status, folder = make(f"--model={path}")
    error = capsys.readouterr().err
    assert status == 2 and not folder.exists() and message in error and error.count("\n") == 1
