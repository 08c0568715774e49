"""Endless documents: stories, facts and dialogues."""

import dataclasses
import random
from collections.abc import Iterator

from experiments.train_tiny.stories.dialogues import Message, dialogue
from experiments.train_tiny.stories.facts import animal_fact, mixed_facts, self_introduction
from experiments.train_tiny.stories.stories import story


@dataclasses.dataclass(frozen=True)
class Document:
    """Messages of (role, text). A text that is no dialogue is one message whose role is empty."""

    messages: tuple[Message, ...]


def document(rng: random.Random) -> Document:
    """A story, facts, or a dialogue."""
    which = rng.random()
    if which < 0.5:
        return Document(dialogue(rng))
    if which < 0.86:
        text = story(rng)[0]
    else:
        text = rng.choice((animal_fact, mixed_facts, self_introduction))(rng)
    return Document((("", text),))


def documents(seed: int) -> Iterator[Document]:
    """Endless documents, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield document(rng)
