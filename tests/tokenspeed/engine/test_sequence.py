"""What a sequence says of itself, and what it refuses."""

from typing import Any

import pytest

from tokenspeed.engine.sequence import Sequence


def test_a_prompt_is_copied():
    prompt = [1, 2, 3]
    s = Sequence(id=0, prompt=prompt, max_tokens=2)
    prompt.append(4)
    assert s.tokens == [1, 2, 3]


def test_pending_tokens_count_before_they_are_known():
    s = Sequence(id=0, prompt=[1, 2, 3], max_tokens=3)
    s.computed, s.pending, s.output = 4, 1, [7]
    assert (s.tokens, s.length, s.length - s.computed, s.most_keys, s.exhausted) == ([1, 2, 3, 7], 5, 1, 5, False)
    s.pending = 2
    assert s.exhausted


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("prompt", [], ValueError),
        ("prompt", [1, -1], ValueError),
        ("prompt", "text", TypeError),
        ("max_tokens", 0, ValueError),
        ("max_tokens", 1.5, TypeError),
        ("priority", None, TypeError),
    ],
)
def test_wrong_values_are_named(name, value, error):
    arguments: dict[str, Any] = dict(id=0, prompt=[1], max_tokens=1)
    with pytest.raises(error, match=f"^{name}: expected"):
        Sequence(**arguments | {name: value})


def test_sequences_with_equal_tokens_are_not_equal():
    assert Sequence(id=0, prompt=[1], max_tokens=1) != Sequence(id=0, prompt=[1], max_tokens=1)
