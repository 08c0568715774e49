"""What is asked: prompts of random words, no two of which begin alike, and how many tokens are wanted."""

import dataclasses

import numpy as np

MIXES = ("chat", "long", "both")
SYLLABLES = tuple(first + second for first in "bdfgklmnprstv" for second in "aeiou")
SPREAD = 0.6
"""Of the logarithm of a length: most are within half and twice the median."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One request: which kind it is of, its text, and how many tokens are to be generated."""

    kind: str
    text: str
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Median words and tokens of a chat, and those of every long prompt."""

    chat_words: int
    chat_tokens: int
    long_words: int
    long_tokens: int

    def chat(self, rng: np.random.Generator) -> Prompt:
        words, tokens = (
            int(np.clip(median * np.exp(SPREAD * rng.standard_normal()), median / 4, 4 * median) + 1)
            for median in (self.chat_words, self.chat_tokens)
        )
        return Prompt(kind="chat", text=text(words, rng), tokens=tokens)

    def long(self, rng: np.random.Generator) -> Prompt:
        return Prompt(kind="long", text=text(self.long_words, rng), tokens=self.long_tokens)


def text(words: int, rng: np.random.Generator) -> str:
    """Random words of two or three syllables."""
    drawn = iter(rng.integers(0, len(SYLLABLES), 3 * words).tolist())
    lengths = rng.integers(2, 4, words).tolist()
    return " ".join("".join(SYLLABLES[next(drawn)] for _ in range(length)) for length in lengths)
