"""A short training learns, makes the same folder again, and leaves none where it is interrupted."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train_tiny import __main__ as command
from experiments.train_tiny import training
from experiments.train_tiny.recipe import Recipe
from experiments.train_tiny.tokenizer import files, make_tokenizer
from tokenspeed.models import hf_config
from tokenspeed.weights import checkpoint

FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
RECIPE = Recipe(
    vocab_size=320, d_model=32, d_ff=48, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=48,
    tokenizer_documents=50, steps=20, batch=4, length=32, long_share=0.0, learning_rate=1e-2, warmup=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(RECIPE)


@pytest.fixture(scope="module")
def untrained():
    """As the training begins, in the dtype in which it ends."""
    model = training.initial(hf_config.from_dict(RECIPE.config), RECIPE.seed)
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)


def test_rows_begin_with_a_document(shipped_tokenizer):
    texts = ["One.<|end|>", "Two and three.<|end|>"]
    rows = training.rows(itertools.cycle(texts), shipped_tokenizer, 20)
    for row in itertools.islice(rows, 3):
        assert row.shape == (21,) and row.dtype == np.int32 and row[0] == 0
        assert shipped_tokenizer.decode(row[1:], skip_special_tokens=False).startswith(("One.<|end|>", "Two and"))


def test_rows_are_short_and_at_the_end_long(tokenizer):
    """As many tokens a step, about, and none twice."""
    recipe = dataclasses.replace(RECIPE, steps=10, long_share=0.3, max_positions=64)
    found = list(training.curriculum(recipe, tokenizer))
    assert [one.shape for one in found] == [(4, 33)] * 7 + [(2, 65)] * 3
    begun = [tuple(row[:33]) for one in found for row in one]
    assert len(set(begun)) == len(begun)


@pytest.mark.slow
def test_a_short_training(tmp_path, tokenizer, untrained, capsys):
    command.make(RECIPE, tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == FILES
    assert capsys.readouterr().out.count("greedy") == len(command.PROMPTS)
    model = checkpoint.load(tmp_path / "one")
    before, after = (training.held_out_loss(RECIPE, one, tokenizer, count=2) for one in (untrained, model))
    assert after < before - 0.5
    checkpoint.save(tmp_path / "two", training.train(RECIPE, tokenizer)[0], files(RECIPE, tokenizer))
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("where", ["training", "writing"])
def test_an_interrupted_run_leaves_no_folder(tmp_path, untrained, monkeypatch, where):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    if where == "training":
        monkeypatch.setattr(training, "curriculum", lambda *args: map(interrupted, range(9)))
    else:
        monkeypatch.setattr(command, "train", lambda *args: (untrained, [0.0]))
        monkeypatch.setattr(command, "held_out_loss", lambda *args: 0.0)
        monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.make(RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_that_the_text_does_not_fill(tmp_path):
    with pytest.raises(ValueError, match="add documents"):
        command.make(dataclasses.replace(RECIPE, vocab_size=9999), tmp_path / "out")


def test_the_command_says_what_to_make(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(command, "make", lambda recipe, out: made.append((recipe, out)))
    assert command.main([f"--out={tmp_path / 'a'}"]) == 0
    assert command.main([f"--out={tmp_path / 'b'}", "--seed=3", "--steps=7"]) == 0
    assert made == [(Recipe(), tmp_path / "a"), (Recipe(seed=3, steps=7), tmp_path / "b")]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out={there}"], "exists already"),
        ([], "out: expected the folder to write"),
        (["--out={there}/new", "--seed=-1"], "seed: expected 0 or more, got -1"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    assert command.main([argument.format(there=tmp_path) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
