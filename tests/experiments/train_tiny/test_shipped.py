"""The small model that ships: its files agree, it is what the recipe makes, and it has learned."""

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.train_tiny.recipe import Recipe
from experiments.train_tiny.stories import facts, world
from experiments.train_tiny.tokenizer import files, make_tokenizer
from experiments.train_tiny.training import held_out_loss, sample
from tokenspeed import TINY
from tokenspeed.models import hf_config
from tokenspeed.weights import checkpoint, entries

pytestmark = pytest.mark.usefixtures("programs_run_often")

FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
COLOURS = "|".join(world.COLOURS)


@pytest.fixture(scope="module")
def shipped_model():
    return checkpoint.load(TINY)


def test_the_shipped_files_agree(shipped_tokenizer):
    assert sorted(path.name for path in TINY.iterdir()) == FILES
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 5e6
    config, generation, names = (
        json.loads((TINY / name).read_text())
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    assert shipped_tokenizer.get_vocab_size() == config["vocab_size"]
    for end in ("bos", "eos"):
        assert config[f"{end}_token_id"] == generation[f"{end}_token_id"]
        assert config[f"{end}_token_id"] == shipped_tokenizer.token_to_id(names[f"{end}_token"])
    assert names["model_max_length"] == config["max_position_embeddings"]
    tensors = load_file(TINY / "model.safetensors")
    parts = [part for entry in entries.entries(hf_config.from_dict(config)) for part in entry.parts]
    assert {name: tensor.shape for name, tensor in tensors.items()} == {part.name: part.shape for part in parts}
    assert {str(tensor.dtype) for tensor in tensors.values()} == {config["torch_dtype"]}
    for tensor in tensors.values():
        assert np.isfinite(tensor.astype(np.float32)).all()


@pytest.mark.slow
def test_the_shipped_folder_is_what_the_recipe_makes():
    recipe = Recipe()
    for name, content in files(recipe, make_tokenizer(recipe)).items():
        assert json.loads((TINY / name).read_text()) == content, name


@pytest.mark.slow
def test_the_shipped_model_has_learned(shipped_model, shipped_tokenizer):
    recipe = dataclasses.replace(Recipe(), batch=4)
    assert held_out_loss(recipe, shipped_model, shipped_tokenizer, count=1) < 0.8


@pytest.mark.slow
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
    """In the form that was asked for."""
    assert re.fullmatch(answer, sample(shipped_model, shipped_tokenizer, [("user", question)], length=48))


def questions():
    """Of the facts that the text teaches, each with words of the answer."""
    for animal in facts.ANIMALS:
        name = f"{'an' if animal.name[0] in 'aeiou' else 'a'} {animal.name}"
        yield f"What is a baby {animal.name} called?", animal.young
        yield f"Where does {name} live?", animal.lives
        yield f"What does {name} eat?", animal.eats
        if animal.says:
            yield f"What does {name} say?", animal.says
    yield from ((f"What colour is {thing}?", colour) for thing, colour in facts.THING_COLOURS)
    yield from ((f"What is the capital of {country}?", city) for country, city in facts.CAPITALS)
    yield from ((f"What is the opposite of {word}?", other) for word, other in facts.OPPOSITES)


@pytest.mark.slow
def test_the_shipped_model_answers_questions_of_its_world_rightly_more_often_than_not(shipped_model, shipped_tokenizer):
    asked = list(questions())[::6]
    right = [word in sample(shipped_model, shipped_tokenizer, [("user", text)], length=48) for text, word in asked]
    assert sum(right) > 0.6 * len(asked) > 12


@pytest.mark.slow
def test_the_shipped_model_tells_a_story(shipped_model, shipped_tokenizer, some):
    text = sample(shipped_model, shipped_tokenizer, "Once upon a time", length=256)
    assert text.startswith("Once upon a time, ") and text.endswith((".", "!", '"'))
    assert len(text) > 300
    known = {word for document in some(500) for _, text in document.messages for word in re.findall(r"\w+", text)}
    written = re.findall(r"\w+", text)
    assert sum(word in known for word in written) > 0.98 * len(written)
