"""Times that are given instead of taken."""

import pytest

from experiments.decode import case


@pytest.fixture
def time_is(monkeypatch):
    """Gives every timed call the (result, seconds) of a function of its number and its result; the call is real.

    Returns the programs that were called, in order.
    """

    def patch(outcome):
        real, calls = case.timed, []

        def timed(program, *arguments):
            result, _ = real(program, *arguments)
            calls.append(program)
            return outcome(len(calls) - 1, result)

        monkeypatch.setattr(case, "timed", timed)
        return calls

    return patch


@pytest.fixture
def steady(time_is):
    """Three milliseconds a call."""
    return time_is(lambda call, result: (result, 0.003))
