"""The samples of a case, and that what does not count says so. Its programs draw given tokens and compute nothing."""

import types

import jax
import numpy as np
import pytest

from experiments.decode.case import Case
from tokenspeed.engine.generation import BROKEN

STEPS = 3
SEQUENCES, REPEATS = 2, 2
STEADY_S, STEADY_MS = 0.003, 1.0
"""Of a call and of a step of it."""


def drawing(tokens):
    return types.SimpleNamespace(tokens=np.asarray(tokens, np.int32))


class Workload:
    """What a case needs of a workload; the programs draw as token the number of the sequence."""

    steps, decoder, rope = STEPS, types.SimpleNamespace(weights=None), None

    def __init__(self, failing=()):
        self.failing = failing

    def fresh(self, sequence):
        return sequence

    def programs(self, names, compilations):
        jax.jit(lambda x: x + 1.5)(np.float32(0))  # a case wants to see that something is compiled
        return {name: [self.compiled(name) for _ in range(compilations)] for name in names}

    def compiled(self, name):
        if name in self.failing:
            return RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore lines")
        return lambda weights, state, rope: (state, drawing([[state]] * STEPS))


def measured(*names, compilations=1, failing=()):
    return Case(Workload(failing), names, compilations).measure(SEQUENCES, REPEATS)


def test_implementations_take_turns(time_is):
    calls = time_is(lambda call, result: (result, STEADY_S * (1 if calls[call] is calls[0] else 2)))
    found = measured("triton", "xla")
    assert len(calls) == 2 + 2 * SEQUENCES * REPEATS, "the first call of each loads it"
    turns = [[calls.index(program) for program in calls[i : i + 2]] for i in range(0, len(calls), 2)]
    assert turns[0] == [0, 1] and {tuple(sorted(turn)) for turn in turns} == {(0, 1)}
    assert [1, 0] in turns, "in an order that changes: places in memory change in turn as well"
    assert {name: one.step_ms for name, one in found.items()} == {
        "triton": pytest.approx([STEADY_MS] * 4),
        "xla": pytest.approx([2 * STEADY_MS] * 4),
    }
    assert all(one.status == "ok" for one in found.values())
    assert {sequence: tokens.tolist() for sequence, tokens in found["xla"].tokens.items()} == {
        0: [[0]] * STEPS,
        1: [[1]] * STEPS,
    }


def test_every_compilation_is_timed(time_is):
    """Of two implementations: four programs, of which the second and the fourth to be loaded are slower."""
    calls = time_is(lambda call, result: (result, STEADY_S * (1 if calls[call] in calls[:1] + calls[2:3] else 1.06)))
    found = measured("triton", "xla", compilations=2)
    timed = calls[4:]
    assert len({*calls[:4]}) == 4 and {*timed[:4]} == {*timed[4:8]} == {*calls[:4]}
    for one in found.values():
        assert one.medians == pytest.approx([STEADY_MS, 1.06 * STEADY_MS]) and len(one.step_ms) == 8
        assert STEADY_MS < one.percentiles[1] < 1.06 * STEADY_MS and one.status == "ok"


def test_two_compilations_may_draw_other_tokens(time_is):
    def outcome(call, result):
        state, drawn = result
        return (state, drawing(drawn.tokens + 10 * (calls[call] in calls[1:2]))), STEADY_S

    calls = time_is(outcome)
    (found,) = measured("xla", compilations=2).values()
    assert found.status == "ok"
    assert {sequence: int(tokens[0, 0]) for sequence, tokens in found.tokens.items()} == {0: 0, 1: 1}, "of the first"


# --- what does not count


def _compiles(call, result):
    if call == 3:
        jax.jit(lambda x: x * 3.5)(np.float32(1))
    return result, STEADY_S


def _draws_other_tokens(call, result):
    state, drawn = result
    return (state, drawing(drawn.tokens + (call == 4))), STEADY_S


def _is_not_finite(call, result):
    state, drawn = result
    return (state, drawing(drawn.tokens if call in (0, 1, 3) else [[0], [BROKEN], [0]])), STEADY_S


def _slower(factor):
    return lambda call, result: (result, STEADY_S * (factor if call == 2 else 1))


@pytest.mark.parametrize(
    "happens, status",
    [
        (_compiles, "void: something was compiled during timing"),
        (_draws_other_tokens, "void: the tokens of two runs of a sequence differ"),
        (_is_not_finite, "void: logits that are not finite"),
        (_slower(1.1), "ok"),
        (_slower(1.2), "void: (p95 - p5) / median is 17.0%, more than 10%"),
    ],
    ids=["compiles", "tokens", "nan", "narrow", "wide"],
)
def test_void(time_is, happens, status):
    time_is(happens)
    (found,) = measured("xla").values()
    assert found.status == status and len(found.step_ms) == SEQUENCES * REPEATS, "the times are kept"


def test_several_reasons_are_told_once_each(time_is):
    def outcome(call, result):
        state, drawn = result
        return (state, drawing(drawn.tokens + call)), STEADY_S * (1 + call % 2)

    time_is(outcome)
    (found,) = measured("xla").values()
    assert found.status.startswith("void: the tokens of two runs of a sequence differ; (p95 - p5) / median is ")
    assert found.status.count("differ") == 1


def test_what_does_not_compile_fails_and_the_others_go_on(steady):
    found = measured("triton", "xla", failing=["triton"])
    assert found["triton"].status == "compiling failed: RuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert found["triton"].step_ms == [] and found["triton"].tokens == {}
    assert found["xla"].status == "ok" and len(found["xla"].step_ms) == 4


@pytest.mark.parametrize("call", [0, 4], ids=["while it is loaded", "while it is timed"])
def test_a_call_that_fails(time_is, call):
    def outcome(number, result):
        if calls[number] is calls[0] and number in (call, call + 1):
            raise ValueError("no")
        return result, STEADY_S

    calls = time_is(outcome)
    found = measured("triton", "xla")
    assert found["triton"].status == "running failed: ValueError: no"
    assert found["xla"].status == "ok" and len(found["xla"].step_ms) == 4


def test_a_jax_that_does_not_say_when_it_compiles_times_nothing(steady, monkeypatch):
    monkeypatch.setattr(
        Workload, "programs", lambda self, names, count: {name: [self.compiled(name)] for name in names}
    )
    (found,) = measured("xla").values()
    assert found.status == "compiling failed: RuntimeError: this jax does not say when it compiles"
    assert found.step_ms == []
