"""The tokenizer brings any text back, and the chat template renders what the model was trained on."""

import json

import jinja2
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from experiments.train_tiny.recipe import BEGIN, END, SPECIAL, Recipe
from experiments.train_tiny.tokenizer import make_tokenizer, rendered
from tokenspeed import TINY


@given(st.text())
def test_any_text_comes_back(shipped_tokenizer, text):
    ids = shipped_tokenizer.encode(text).ids
    assert ids[0] == SPECIAL.index(BEGIN)
    assert shipped_tokenizer.decode(ids[1:], skip_special_tokens=False) == text


def test_every_byte_has_a_token(shipped_tokenizer):
    assert set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) <= set(shipped_tokenizer.get_vocab())


def test_special_tokens(shipped_tokenizer):
    for i, token in enumerate(SPECIAL):
        assert shipped_tokenizer.encode(token, add_special_tokens=False).ids == [i]
    assert shipped_tokenizer.decode(shipped_tokenizer.encode("Hello.<|end|>").ids) == "Hello."


def test_the_tokenizer_is_the_same_for_the_same_text():
    recipe = Recipe(vocab_size=320, tokenizer_documents=50)
    found = make_tokenizer(recipe)
    assert found.to_str() == make_tokenizer(recipe).to_str() and found.get_vocab_size() == 320


def test_the_chat_template_renders_what_the_model_was_trained_on(some):
    config = json.loads((TINY / "tokenizer_config.json").read_text())
    template = jinja2.Template(config["chat_template"])
    with pytest.raises(jinja2.UndefinedError, match="raise_exception"):
        template.render(messages=[dict(role="tool", content="")], **config)
    for document in some(100):
        roles, contents = zip(*document.messages)
        if roles != ("",):
            messages = [dict(role=role, content=content) for role, content in zip(roles, contents)]
            whole = template.render(messages=messages, **config)
            assert whole == BEGIN + rendered(document.messages)
            asked = template.render(messages=messages[:-1], add_generation_prompt=True, **config)
            assert whole == asked + contents[-1] + END
