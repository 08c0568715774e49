"""Shapes: every piece of work has a program, and there are few of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.engine.kinds import DRAWN, FULL, GREEDY, KINDS
from tokenspeed.engine.shapes import any_size, served

SERVED = served(max_rows=256, max_context=131072, steps=4)
OFFLINE = any_size(max_rows=64, tokens=8192, max_context=131072, steps=16)
both = pytest.mark.parametrize("shapes", [SERVED, OFFLINE, served(max_rows=1, max_context=20)])


def count(shapes):
    """Programs of a served model on a GPU, where chunks of up to 256 tokens take the kernels of decode."""
    chunks = sum(1 if rows * length <= 256 else len(shapes.behind) for rows, length in shapes.chunks)
    return len(("tables", "score")) + len(shapes.decode) + len(shapes.first) + chunks


@pytest.mark.parametrize("max_rows", [1, 2, 7, 64, 256])
@pytest.mark.parametrize("max_context", [100, 16384, 131072])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_served_model_has_at_most_40_programs(max_rows, max_context, steps):
    assert count(served(max_rows=max_rows, max_context=max_context, steps=steps)) <= 40


@both
@given(length=st.integers(1, 20000))
def test_a_chunk_is_split_into_what_programs_take(shapes, length):
    parts = shapes.split(length)
    assert sum(parts) == length and min(parts) > 0 and max(parts) <= shapes.lengths[-1]
    enough = [size for size in shapes.lengths if size >= length]
    takes = lambda size: size + shapes.pass_tokens
    time = sum(takes(min(size for size in shapes.lengths if size >= part)) for part in parts)
    assert not enough or time <= takes(enough[0]), "no longer than one program that takes it all"


def test_the_parts_of_a_chunk_are_those_of_the_least_time():
    assert SERVED.split(600) == [512, 88], "and not 1024 padded"
    assert SERVED.split(900) == [900] and SERVED.split(2500) == [1024, 1024, 452]
    assert SERVED.split(88) == [88], "one pass over the weights, not two"
    assert (SERVED.padded(88), SERVED.padded(600), SERVED.padded(2500)) == (128, 640, 2560)
    assert OFFLINE.split(1900) == [1900], "and not four programs to compile"


@both
@given(lengths=st.lists(st.integers(1, 16), max_size=70))
def test_every_chunk_is_in_one_program_that_is_there(shapes, lengths):
    seen = []
    for (rows, tokens), members in shapes.pack(lengths):
        assert (rows, tokens) in shapes.chunks and 0 < len(members) <= rows
        assert all(lengths[i] <= tokens for i in members)
        seen += members
    assert sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize("shapes", [SERVED, OFFLINE])
@given(kind=st.sampled_from(KINDS), rows=st.integers(1, 64), steps=st.integers(1, 20))
def test_decode_has_a_program_for_any_rows(shapes, kind, rows, steps):
    found = shapes.decode_for(kind, rows, steps)
    assert found in shapes.decode
    assert found[1] >= rows and KINDS.index(found[0]) >= KINDS.index(kind) and found[2] <= steps
    assert shapes.decode_for(*found) == found, "so many rows take the same program again"


def test_a_program_for_what_is_asked_goes_before_one_that_does_more():
    assert SERVED.decode_for(GREEDY, 3, 4) == (GREEDY, 4, 1) and SERVED.decode_for(DRAWN, 1, 9) == (DRAWN, 1, 4)
    assert SERVED.decode_for(FULL, 3, 1) == (FULL, 8, 1), "what costs more has fewer sizes"
    assert SERVED.first_for(GREEDY, 1) == (GREEDY, 1) and SERVED.first_for(GREEDY, 20) == (FULL, 8)
    assert [SERVED.behind_for(start) for start in (0, 1, 16384, 16385)] == [0, 16384, 16384, 131072]


def test_where_a_step_has_tokens_for_as_many_four_long_prompts_share_a_program():
    crowded = served(max_rows=64, max_context=131072, tokens=8192)
    assert crowded.pack([1024] * 5) == [((4, 1024), [0, 1, 2, 3]), ((1, 1024), [4])]
    assert [shape for shape, _ in crowded.pack([1024] * 3)] == [(1, 1024)] * 3, "and three none with room for four"
    assert [shape for shape, _ in crowded.pack([64] * 3)] == [(4, 64)], "a pass over the weights takes as long as that"
    assert SERVED.pack([1024] * 2) == [((1, 1024), [0]), ((1, 1024), [1])]
    for rows in (4, 64, 256):
        assert count(served(max_rows=rows, max_context=131072, tokens=8192, steps=4)) <= 40
