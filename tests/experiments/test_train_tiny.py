import collections
import dataclasses
import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from absl import app
from absl.testing import flagsaver
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import tokenspeed
from experiments import train_tiny
from experiments.tiny_stories import corpus, grammar, stories, world
from tokenspeed import checkpoint
from tokenspeed.config import ModelConfig
from tokenspeed.model import Llama

SHIPPED = Path(tokenspeed.__file__).parent / "tiny"
COLOURS = "|".join(world.COLOURS)
FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
TINY = train_tiny.Recipe(
    vocab_size=320, d_model=32, d_ff=48, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=64,
    tokenizer_documents=50, steps=20, batch=4, length=32, learning_rate=1e-2, warmup=2,
)  # fmt: skip


def some(count, seed=0):
    return list(itertools.islice(corpus.documents(seed), count))


@pytest.fixture(scope="module")
def texts():
    """(role, text) of many documents."""
    return [message for document in some(2000) for message in document.messages]


@pytest.fixture(scope="module")
def shipped_tokenizer():
    return tokenizers.Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


@pytest.fixture(scope="module")
def shipped_model():
    return checkpoint.load(SHIPPED)


# --- the text


def test_documents_are_the_same_for_the_same_seed():
    assert some(50) == some(50)
    assert some(50) != some(50, seed=1)


def test_the_text_is_plain_english(texts):
    for role, text in texts:
        assert role in ("", *train_tiny.ROLES)
        assert re.fullmatch(r"[A-Za-z0-9 .,:;!?\"+=-]+", text), text
        assert text == " ".join(text.split())
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
        if role in ("", "assistant"):
            assert re.fullmatch(r"[A-Z0-9].*[.!?]", text), text
            assert text.count('"') % 2 == 0, text


def test_the_text_is_varied(texts):
    assert {role for role, _ in texts} == {"", *train_tiny.ROLES}
    words = collections.Counter(word for _, text in texts for word in re.findall(r"\w+", text.lower()))
    assert len(words) > 800
    written = " ".join(text for _, text in texts)
    for word in (*world.GIRLS, *world.BOYS, *world.TOYS, *world.COLOURS):
        assert word in written


def test_dialogues_alternate():
    for document in some(500):
        roles = [role for role, _ in document.messages]
        if roles != [""]:
            turns = roles[1:] if roles[0] == "system" else roles
            assert turns == ["user", "assistant"] * (len(turns) // 2)


def test_sums_are_right(texts):
    sums = [found for _, text in texts for found in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)\.", text)]
    assert len(sums) > 20
    for one, sign, other, result in sums:
        assert int(one) + int(sign + other) == int(result)


def test_characters_are_two_and_stay():
    generator = random.Random(0)
    for _ in range(200):
        text, fields = stories.story(generator)
        known = {*world.GIRLS, *world.BOYS, *world.PET_NAMES}
        named = {word for word in re.findall(r"\w+", text) if word in known}
        assert named <= {fields["name"], fields["fname"]} and fields["name"] in named
        assert fields.get("colour", "") in text


def test_expand():
    generator = random.Random(0)
    fields = dict(he="she", thing="apple", family="uncle")
    assert grammar.expand(generator, "{He}   had a {thing}. [{he}|she] ate [it|it].", fields) == (
        "She had an apple. She ate it."
    )
    assert grammar.expand(generator, "A [[old|old]|old] {family}[|]", fields) == "An old uncle"
    with pytest.raises(KeyError, match="nobody"):
        grammar.expand(generator, "{Nobody}", fields)


# --- the tokenizer


@given(st.text())
def test_any_text_comes_back(shipped_tokenizer, text):
    ids = shipped_tokenizer.encode(text).ids
    assert ids[0] == train_tiny.SPECIAL.index(train_tiny.BEGIN)
    assert shipped_tokenizer.decode(ids[1:], skip_special_tokens=False) == text


def test_every_byte_has_a_token(shipped_tokenizer):
    assert set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) <= set(shipped_tokenizer.get_vocab())


def test_special_tokens(shipped_tokenizer):
    for i, token in enumerate(train_tiny.SPECIAL):
        assert shipped_tokenizer.encode(token, add_special_tokens=False).ids == [i]
    assert shipped_tokenizer.decode(shipped_tokenizer.encode("Hello.<|end|>").ids) == "Hello."


def test_the_tokenizer_is_the_same_for_the_same_text():
    assert train_tiny.make_tokenizer(TINY).to_str() == train_tiny.make_tokenizer(TINY).to_str()


def test_the_chat_template_renders_what_the_model_was_trained_on():
    jinja2 = pytest.importorskip("jinja2")
    config = json.loads((SHIPPED / "tokenizer_config.json").read_text())
    template = jinja2.Template(config["chat_template"])
    with pytest.raises(jinja2.UndefinedError, match="raise_exception"):
        template.render(messages=[dict(role="tool", content="")], **config)
    for document in some(100):
        roles, contents = zip(*document.messages)
        if roles != ("",):
            messages = [dict(role=role, content=content) for role, content in zip(roles, contents)]
            rendered = template.render(messages=messages, **config)
            assert rendered == train_tiny.BEGIN + train_tiny.rendered(document.messages)
            asked = template.render(messages=messages[:-1], add_generation_prompt=True, **config)
            assert rendered == asked + contents[-1] + train_tiny.END


# --- the training


def test_rows_begin_with_a_document(shipped_tokenizer):
    texts = ["One.<|end|>", "Two and three.<|end|>"]
    rows = train_tiny.rows(itertools.cycle(texts), shipped_tokenizer, 20)
    for row in itertools.islice(rows, 3):
        assert row.shape == (21,) and row.dtype == np.int32 and row[0] == 0
        assert shipped_tokenizer.decode(row[1:], skip_special_tokens=False).startswith(("One.<|end|>", "Two and"))


def test_a_short_training(tmp_path, capsys):
    train_tiny.make(TINY, tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == FILES
    assert "greedy" in capsys.readouterr().out
    model, tokenizer = checkpoint.load(tmp_path / "one"), train_tiny.make_tokenizer(TINY)
    untrained = Llama(model.config, rngs=nnx.Rngs(0))
    before, after = (train_tiny.held_out_loss(TINY, one, tokenizer, count=2) for one in (untrained, model))
    assert after < before - 0.5
    checkpoint.save(tmp_path / "two", train_tiny.train(TINY, tokenizer)[0], train_tiny.files(TINY, tokenizer))
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize("where", ["training", "writing"])
def test_an_interrupted_run_leaves_no_folder(tmp_path, monkeypatch, where):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    if where == "training":
        monkeypatch.setattr(train_tiny, "rows", lambda *args: map(interrupted, range(9)))
    else:
        untrained = Llama(ModelConfig.from_dict(TINY.config), rngs=nnx.Rngs(0))
        monkeypatch.setattr(train_tiny, "train", lambda *args: (untrained, [0.0]))
        monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_tiny.make(TINY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_that_the_text_does_not_fill(tmp_path):
    with pytest.raises(ValueError, match="add documents"):
        train_tiny.make(dataclasses.replace(TINY, vocab_size=9999), tmp_path / "out")


# --- what ships


def test_the_shipped_files_agree(shipped_tokenizer):
    assert sorted(path.name for path in SHIPPED.iterdir()) == FILES
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 5e6
    config, generation, names = (
        json.loads((SHIPPED / name).read_text())
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    assert shipped_tokenizer.get_vocab_size() == config["vocab_size"]
    for end in ("bos", "eos"):
        assert config[f"{end}_token_id"] == generation[f"{end}_token_id"]
        assert config[f"{end}_token_id"] == shipped_tokenizer.token_to_id(names[f"{end}_token"])
    assert names["model_max_length"] == config["max_position_embeddings"]
    tensors = load_file(SHIPPED / "model.safetensors")
    parts = [part for entry in checkpoint.entries(ModelConfig.from_dict(config)) for part in entry.parts]
    assert {name: tensor.shape for name, tensor in tensors.items()} == {part.name: part.shape for part in parts}
    assert {str(tensor.dtype) for tensor in tensors.values()} == {config["torch_dtype"]}
    for tensor in tensors.values():
        assert np.isfinite(tensor.astype(np.float32)).all()


def test_the_shipped_folder_is_what_the_recipe_makes():
    recipe = train_tiny.Recipe()
    for name, content in train_tiny.files(recipe, train_tiny.make_tokenizer(recipe)).items():
        assert json.loads((SHIPPED / name).read_text()) == content, name


def test_the_shipped_model_has_learned(shipped_model, shipped_tokenizer):
    recipe = dataclasses.replace(train_tiny.Recipe(), batch=4)
    assert train_tiny.held_out_loss(recipe, shipped_model, shipped_tokenizer, count=1) < 0.8


@pytest.mark.parametrize(
    "question, answer",
    [
        ("What does a cow say?", r"A cow says moo\."),
        ("What is the capital of France?", r"The capital of [A-Z]\w+ is [A-Z]\w+\."),
        ("What is the opposite of big?", r"The opposite of \w+ is \w+\."),
        ("Tom has a red ball. What colour is the ball?", f"The ball is ({COLOURS})[.]"),
    ],
)
def test_the_shipped_model_answers(shipped_model, shipped_tokenizer, question, answer):
    """In the form that was asked for; few facts have room in so small a model."""
    assert re.fullmatch(answer, train_tiny.sample(shipped_model, shipped_tokenizer, [("user", question)], length=48))


def test_the_shipped_model_tells_a_story(shipped_model, shipped_tokenizer):
    text = train_tiny.sample(shipped_model, shipped_tokenizer, "Once upon a time", length=256)
    assert text.startswith("Once upon a time, ") and text.endswith((".", "!", '"'))
    assert len(text) > 300
    known = {word for document in some(500) for _, text in document.messages for word in re.findall(r"\w+", text)}
    written = re.findall(r"\w+", text)
    assert sum(word in known for word in written) > 0.98 * len(written)


def test_the_command_refuses_a_folder_that_exists(tmp_path):
    with flagsaver.as_parsed(out=str(tmp_path)), pytest.raises(app.UsageError, match="exists already"):
        train_tiny.main(["train_tiny"])
