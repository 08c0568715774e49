"""Prompts in tokens have exactly as many."""

import numpy as np
import pytest
import tokenizers

from experiments.bench.errors import UsageError
from experiments.random_checkpoint.tokenizer import make_tokenizer
from experiments.serve_bench.texts import RandomTokens, text_of
from tokenspeed import TINY
from tokenspeed.text.tokenizer import Tokenizer


@pytest.mark.parametrize("path", [TINY, TINY / "tokenizer.json"])
@pytest.mark.parametrize("tokens", [1, 2, 77, 400])
def test_a_text_has_its_tokens_and_a_chat_a_constant_more(path, tokens):
    text, tokenizer = text_of(str(path)), Tokenizer.from_folder(TINY)
    assert tokenizer is not None
    found = [text(tokens, np.random.default_rng(seed)) for seed in range(20)]
    assert {len(tokenizer.encode(one, add_special_tokens=False)) for one in found} == {tokens}
    chats = [tokenizer.encode(tokenizer.render_chat([dict(role="user", content=one)])) for one in found]
    assert {len(chat) - tokens for chat in chats} == {4}


def test_of_a_tokenizer_that_is_made():
    tokenizer = make_tokenizer(3000, 0)
    text = RandomTokens(tokenizer)(512, np.random.default_rng(1))
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) == 512
    assert len(set(text.split())) > 100


def test_one_without_words_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
    with pytest.raises(UsageError, match="tokenizer: expected one with words of one token each"):
        text_of(str(path))
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"tokenizer: .*tokenizer.json: "):
        text_of(str(path))
    with pytest.raises(UsageError, match=r"tokenizer: no file .*nowhere"):
        text_of(str(tmp_path / "nowhere"))
