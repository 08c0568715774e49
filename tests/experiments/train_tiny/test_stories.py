"""The text is plain, varied and right English, and the same for the same seed."""

import collections
import random
import re
import subprocess
import sys

import pytest

from experiments.train_tiny.recipe import ROLES
from experiments.train_tiny.stories import grammar, stories, world


@pytest.fixture(scope="module")
def texts(some):
    """(role, text) of many documents."""
    return [message for document in some(2000) for message in document.messages]


def test_documents_are_the_same_for_the_same_seed(some):
    assert some(50) == some(50)
    assert some(50) != some(50, seed=1)


def test_the_text_is_plain_english(texts):
    for role, text in texts:
        assert role in ("", *ROLES)
        assert re.fullmatch(r"[A-Za-z0-9 .,:;!?\"+=-]+", text), text
        assert text == " ".join(text.split())
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
        if role in ("", "assistant"):
            assert re.fullmatch(r"[A-Z0-9].*[.!?]", text), text
            assert text.count('"') % 2 == 0, text


def test_the_text_is_varied(texts):
    assert {role for role, _ in texts} == {"", *ROLES}
    words = collections.Counter(word for _, text in texts for word in re.findall(r"\w+", text.lower()))
    assert len(words) > 800
    written = " ".join(text for _, text in texts)
    for word in (*world.GIRLS, *world.BOYS, *world.TOYS, *world.COLOURS):
        assert word in written


def test_dialogues_alternate(some):
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


def test_the_command_prints_as_many_as_asked_for(some):
    command = [sys.executable, "-m", "experiments.train_tiny.stories", "--count=3"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    expected = ["\n".join(f"{role}: {text}" if role else text for role, text in d.messages) for d in some(3)]
    assert printed.split("\n\n")[:-1] == expected
