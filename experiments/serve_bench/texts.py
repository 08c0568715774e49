"""Texts of random words, no two of which begin alike: so many words, or so many tokens of a tokenizer exactly."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tokenizers

from experiments.bench.errors import UsageError

Text = Callable[[int, np.random.Generator], str]
"""Takes how long it is to be, and draws it."""
SYLLABLES = tuple(first + second for first in "bdfgklmnprstv" for second in "aeiou")
LEAST_WORDS = 32
"""That are tokens of their own, of a tokenizer that will do."""
TRIED = 1000
"""Words of the text that a tokenizer is tried on."""


def random_words(words: int, rng: np.random.Generator) -> str:
    """Of two or three syllables."""
    drawn = iter(rng.integers(0, len(SYLLABLES), 3 * words).tolist())
    lengths = rng.integers(2, 4, words).tolist()
    return " ".join("".join(SYLLABLES[next(drawn)] for _ in range(length)) for length in lengths)


class RandomTokens:
    """Texts of so many tokens: of words that are one token each, whatever is before them.

    Raises:
        UsageError: there are too few, or a text of them has other tokens.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        def alone(texts: list[str]) -> list[str]:
            encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
            return [text for text, found in zip(texts, encoded) if len(found.ids) == 1]

        decoded = tokenizer.decode_batch([[id] for id in range(tokenizer.get_vocab_size())])
        words = sorted({text.strip() for text in decoded if re.fullmatch(r" ?[A-Za-z]{2,}", text)})
        self._firsts = alone(words)
        self._others = [text[1:] for text in alone([f" {word}" for word in words])]
        if min(len(self._firsts), len(self._others)) < LEAST_WORDS:
            raise UsageError("tokenizer: expected one with words of one token each, such as a byte-level BPE")
        found = len(tokenizer.encode(self(TRIED, np.random.default_rng(0)), add_special_tokens=False).ids)
        if found != TRIED:
            raise UsageError(f"tokenizer: expected one in which {TRIED} such words are as many tokens, got {found}")

    def __call__(self, tokens: int, rng: np.random.Generator) -> str:
        first = self._firsts[rng.integers(len(self._firsts))]
        others = rng.integers(0, len(self._others), tokens - 1).tolist()
        return " ".join([first, *(self._others[i] for i in others)])


def text_of(tokenizer: str) -> Text:
    """Texts in tokens of a tokenizer.json, given it or its folder; in words where that is ''.

    Raises:
        UsageError: there is none, or none that will do.
    """
    if not tokenizer:
        return random_words
    path = Path(tokenizer)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UsageError(f"tokenizer: no file {path}")
    try:
        loaded = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of its own
        raise UsageError(f"tokenizer: {path}: {' '.join(str(error).split())[:200]}") from None
    loaded.no_truncation()
    loaded.no_padding()
    return RandomTokens(loaded)
