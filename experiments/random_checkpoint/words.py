"""Pseudo-words, of which some are common and most are rare, as in a language (Zipf)."""

from collections.abc import Iterator

import numpy as np

ONSETS = (*"bcdfghjklmnprstvwyz", "bl", "br", "ch", "cl", "dr", "fr", "gr", "pl", "qu", "sh", "sl", "st", "th", "tr")
NUCLEI = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "oa", "oo", "ou")
CODAS = ("", "", "n", "r", "l", "s", "t", "m", "d", "ng", "st", "ck")
MOST_SYLLABLES = 4
REPEATS = 16
"""Words of text for each word that there is."""
LINE = 1000
"""Words."""


def pseudo_words(count: int, rng: np.random.Generator) -> list[str]:
    """Different words of one to four syllables."""
    found: dict[str, None] = {}
    while len(found) < count:
        parts = (rng.choice(kind, MOST_SYLLABLES) for kind in (ONSETS, NUCLEI, CODAS))
        syllables = ["".join(syllable) for syllable in zip(*parts)]
        found["".join(syllables[: rng.integers(1, MOST_SYLLABLES + 1)])] = None
    return list(found)


def zipf_text(words: list[str], rng: np.random.Generator) -> Iterator[str]:
    """Lines in which the n-th word is as frequent as 1/n, and each is at least once."""
    chances = 1 / np.arange(1, len(words) + 1)
    chances /= chances.sum()
    for begin in range(0, len(words), LINE):
        yield " " + " ".join(words[begin : begin + LINE])
    for _ in range(0, REPEATS * len(words), LINE):
        yield " ".join(words[i] for i in rng.choice(len(words), LINE, p=chances))
