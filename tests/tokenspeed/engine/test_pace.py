"""Pace: no more under way than a newcomer may wait for, and always something."""

import pytest

from tokenspeed.engine.pace import LEAD_S, MOST_S, RECENT, Pace

pytestmark = pytest.mark.parametrize("start", [0.0, 100.0])


def after(start: float, *took: float) -> tuple[Pace, float]:
    """A pace that has seen steps of these times, one after another, each begun while the one before ran."""
    pace, now = Pace(), start
    pace.begun("step", now)
    for seconds in took:
        pace.begun("step", now + 0.1 * seconds)
        now += seconds
        pace.ended(now)
    return pace, now


@pytest.mark.parametrize("seconds", [0.5e-3, 2e-3, MOST_S / 2])
def test_short_steps_are_started_at_once(start, seconds):
    pace, now = after(start, seconds, seconds)
    assert pace.hold(now) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seconds", [MOST_S / 2 + 1e-3, MOST_S, 40e-3])
def test_long_ones_wait_until_little_is_left(start, seconds):
    pace, now = after(start, seconds, seconds)
    left = seconds - pace.hold(now)
    assert left >= LEAD_S - 1e-9, "the host has time to start the next"
    assert left + seconds <= max(MOST_S, seconds + LEAD_S) + 1e-9
    assert pace.hold(now + 0.9 * seconds) == pytest.approx(max(0, 0.1 * seconds - left), abs=1e-9)


def test_the_shortest_of_late_ones_counts(start):
    pace, now = after(start, 40e-3, 20e-3, 40e-3)
    assert pace.hold(now) == pytest.approx(20e-3 - LEAD_S)
    pace, now = after(start, 20e-3, *[40e-3] * 4)
    assert pace.hold(now) == pytest.approx(40e-3 - LEAD_S), "and not those of long ago"


def test_nothing_is_held_for_what_is_not_known(start):
    pace, now = after(start, 40e-3)
    pace.begun("another", now)
    assert pace.hold(now) == 0, "two are under way"
    pace.ended(now + 40e-3)
    assert pace.hold(now + 40e-3) == 0, "how long this one takes is not known"
    pace.ended(now + 90e-3)
    assert pace.hold(now + 90e-3) == 0, "nothing is under way"


def test_a_step_is_timed_from_its_start_where_the_device_was_idle(start):
    pace = Pace()
    pace.begun("step", start)
    pace.ended(start + 20e-3)
    pace.begun("step", start + 5.0)
    pace.ended(start + 5.0 + 20e-3)
    pace.begun("step", start + 9.0)
    assert pace.hold(start + 9.0) == pytest.approx(20e-3 - LEAD_S)


def test_a_host_that_comes_late_is_called_earlier(start):
    pace, now = after(start, 40e-3, 40e-3)
    due = now + pace.hold(now)
    pace.starting(due + 3e-3)
    assert pace.hold(now) == pytest.approx(40e-3 - LEAD_S - 3e-3)
    for _ in range(RECENT):
        due = now + pace.hold(now)
        pace.starting(due - 1e-3)
    assert pace.hold(now) == pytest.approx(40e-3 - LEAD_S), "and not for long"
    pace.starting(now + 39e-3)
    pace.starting(now + 9.0)
    assert pace.hold(now) == pytest.approx(36e-3), "where it was not held it was not late"


def test_a_host_that_takes_long_to_start_a_step_begins_earlier(start):
    pace, now = after(start, 40e-3, 40e-3, 40e-3)
    pace.starting(now - 7e-3)
    pace.begun("step", now)
    pace.ended(now + 40e-3)
    assert pace.hold(now + 40e-3) == pytest.approx(40e-3 - 7e-3)
    for _ in range(RECENT):
        now += 40e-3
        pace.starting(now - 1e-3)
        pace.begun("step", now)
        pace.ended(now + 40e-3)
    assert pace.hold(now + 40e-3) == pytest.approx(40e-3 - LEAD_S), "and not for long"


def test_what_was_dropped_is_not_waited_for(start):
    pace, now = after(start, 40e-3, 40e-3)
    pace.forget()
    assert pace.hold(now) == 0


@pytest.mark.parametrize("host_s", [1e-3, 3e-3, 6e-3, 20e-3])
def test_a_host_that_is_slower_than_the_device_is_not_held_back(start, host_s):
    """The engine's loop, with steps of 5 ms on the device and so long to start one on the host."""
    pace, now, free, in_flight, ends = Pace(), start, start, [], []
    for _ in range(200):
        now += pace.hold(now) + host_s
        free = max(free, now) + 5e-3
        in_flight.append(free)
        pace.begun("step", now)
        if len(in_flight) > 1:
            now = max(now, in_flight.pop(0))
            pace.ended(now)
        ends.append(now)
    assert (ends[-1] - ends[99]) / 100 == pytest.approx(max(5e-3, host_s), rel=0.02)
