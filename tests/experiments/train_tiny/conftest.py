"""The text, and what ships."""

import itertools

import pytest
import tokenizers

from experiments.train_tiny.stories import corpus
from tokenspeed import TINY


@pytest.fixture(scope="session")
def some():
    """The first documents of a seed."""

    def make(count, seed=0):
        return list(itertools.islice(corpus.documents(seed), count))

    return make


@pytest.fixture(scope="session")
def shipped_tokenizer():
    return tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
