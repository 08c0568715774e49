"""Templates: strings with `[one|another]` choices, which nest, and `{field}` places.

A field written with a capital first letter is capitalised. Fields are drawn once a story, so that a red ball stays red
until the end.
"""

import random
import re
from collections.abc import Mapping, Sequence

Fields = Mapping[str, str]


CHOICE = re.compile(r"\[([^\[\]]*)\]")
ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
SENTENCE = re.compile(r"(^|[.!?] |\.\" )([a-z])")


class Capitals(dict):
    """Fields, and the same with a capital first letter under their names with a capital first letter."""

    def __missing__(self, name: str) -> str:
        lower = name[0].lower() + name[1:]
        if lower == name:
            raise KeyError(name)
        return self[lower][:1].upper() + self[lower][1:]


def expand(rng: random.Random, template: str, fields: Fields | None = None) -> str:
    """A template with its choices made, its fields filled in, its articles and capitals right."""
    while match := CHOICE.search(template):
        chosen = rng.choice(match[1].split("|"))
        template = template[: match.start()] + chosen + template[match.end() :]
    text = " ".join(template.format_map(Capitals(fields or {})).split())
    text = ARTICLE.sub(r"\1n ", text)
    return SENTENCE.sub(lambda found: found[1] + found[2].upper(), text)


def draw(rng: random.Random, needs: Mapping[str, Sequence]) -> dict[str, str]:
    """Fields drawn from pools.

    Args:
        needs: for a name or several with spaces between, the pool: of strings, from which each name gets another one,
            or of tuples, which are facts that belong together, one for each name.
    """
    fields = {}
    for names, pool in needs.items():
        names = names.split()
        values = rng.choice(pool) if isinstance(pool[0], tuple) else rng.sample(pool, len(names))
        fields |= zip(names, values, strict=True)
    return fields
