"""The scheduler and pages: known prefixes, growth, and who is preempted; of 4 tokens unless said otherwise."""

import pytest

from tests.tokenspeed.engine.paging import ids, make, parts, put, token_of
from tokenspeed.engine.sequence import State


def test_a_known_prefix_is_taken_and_the_rest_computed():
    scheduler, device = make(known=lambda tokens: 3)
    s = put(scheduler, "a", 14, 2)
    assert parts(device.step()) == [("a", 12, 2)]
    assert len(s.pages) == 4
    whole = put(scheduler, "b", 12, 2)  # the last token is computed in any case
    assert parts(device.step()) == [("b", 8, 4)]
    device.step()
    assert whole.state is State.FINISHED and device.pool.available == 100


def test_a_known_prefix_makes_a_long_prompt_short():
    scheduler, device = make(token_budget=8, known=lambda tokens: 4 if len(tokens) == 18 else 0)
    put(scheduler, "long", 40, 1)
    device.step()
    put(scheduler, "a", 18, 1)
    assert parts(device.step()) == [("a", 16, 2), ("long", 8, 4)]


def test_what_a_failed_admission_took_goes_back():
    scheduler, device = make(pages=5, known=lambda tokens: 1 if len(tokens) == 9 else 0)
    put(scheduler, "a", 8, 9)
    device.step()
    put(scheduler, "b", 9, 1)  # three pages, one of them known, and of no other sequence
    assert not device.step().chunks
    assert device.pool.prefixes == 1
    assert device.pool.available == 2 and not scheduler.waiting[0].pages


def test_no_known_prefix_is_taken_where_the_other_pages_are_not_there():
    scheduler, device = make(pages=4, known=lambda tokens: 1 if len(tokens) == 9 else 0)
    put(scheduler, "a", 8, 9)
    device.step()
    put(scheduler, "b", 9, 1)
    assert not device.step().chunks
    assert device.pool.prefixes == 0


def test_pages_are_taken_as_a_sequence_grows():
    scheduler, device = make()
    s = put(scheduler, "a", 18, 4)
    pages = []
    while not scheduler.is_empty:
        scheduler.plan()
        pages.append(len(s.pages))
        device.step()
    assert pages == [2, 4, 5, 5, 5, 6]


def test_full_pages_of_prefill_are_registered_and_those_of_decode_are_not():
    scheduler, device = make()
    s = put(scheduler, "a", 18, 20)
    for _ in range(15):
        device.step()
    pages = s.pages
    assert device.pool.registered == [
        (pages[:2], s.prompt[:8], 0),
        (pages[:4], s.prompt[:16], 2),
    ]


def test_pages_are_registered_once_they_are_dispatched():
    scheduler, device = make()
    put(scheduler, "a", 8)
    plan = scheduler.plan()
    assert not device.pool.registered
    device.run(plan)
    assert len(device.pool.registered) == 1


def crowded(*, pages=6, **others):
    """Three sequences in decode that hold two pages each, which are full after this step."""
    scheduler, device = make(pages=pages, **others)
    found = [put(scheduler, id, 7, 10, priority) for id, priority in (("a", 0), ("b", 1), ("c", 0))]
    device.step()
    device.step()
    assert len(scheduler.running) == 3
    return scheduler, device, found


def test_the_youngest_of_the_lowest_priority_is_preempted():
    scheduler, device, (_, b, _) = crowded(token_budget=32)
    plan = device.step()
    assert ids(plan.preempted) == ["b"]
    assert ids(plan.decodes) == ["a", "c"] and not plan.chunks
    assert (b.state, b.pages, b.computed, b.preemptions) == (State.WAITING, [], 0, 1)
    assert b.output == [token_of(b, 0), token_of(b, 1)]
    assert scheduler.preemptions == 1


def test_one_whose_last_token_is_pending_is_not_preempted():
    scheduler, device = make(pages=5, token_budget=32)
    for id, prompt, most in (("a", 7, 10), ("b", 7, 10), ("c", 3, 2)):
        put(scheduler, id, prompt, most)
    device.run(scheduler.plan())
    device.run(scheduler.plan())
    plan = scheduler.plan()  # "a" takes the page that "c" needs no more, and for "b" there is none
    assert ids(plan.preempted) == ["b"] and ids(scheduler.running) == ["a", "c"]


def test_the_one_that_asks_is_preempted_if_it_is_the_youngest():
    scheduler, device = make(pages=5)
    a, b = put(scheduler, "a", 9, 8), put(scheduler, "b", 7, 12)
    device.step()
    plans = [device.step() for _ in range(2)]
    assert [ids(plan.preempted) for plan in plans] == [[], ["b"]]
    assert ids(plans[-1].decodes) == ["a"] and a.preemptions == 0 and b.preemptions == 1


def test_a_preempted_one_is_first_of_its_priority_and_is_computed_again_from_all_its_tokens():
    scheduler, device, (_, b, _) = crowded(token_budget=32)
    device.step()
    put(scheduler, "later", 2, 2, priority=1)
    put(scheduler, "better", 2, 1, priority=0)
    assert ids(scheduler.waiting) == ["better", "b", "later"]
    again = []
    while not scheduler.is_empty:
        again += [part for part in parts(device.step()) if part[0] == "b"]
    assert again == [("b", 0, 8), ("b", 8, 1)]
    assert b.output == [token_of(b, i) for i in range(10)]
    assert b.queue_steps == 0  # of its first admission


def test_a_preempted_one_waits_for_all_its_pages_and_one_more():
    scheduler, device, (a, _, c) = crowded(token_budget=32)
    device.step()
    scheduler.finished(a)
    scheduler.finished(c)
    kept = device.pool.take(3) or []
    assert not device.step().chunks  # of 9 tokens there are 3 pages
    device.pool.release(kept[:1])
    assert parts(device.step()) == [("b", 0, 8)]


def test_a_preempted_one_waits_for_what_others_in_prefill_will_take():
    scheduler, device = make(pages=8, token_budget=32)
    first, second = put(scheduler, "first", 14, 8), put(scheduler, "second", 10, 12)
    while not second.preemptions and not scheduler.is_empty:
        device.step()
    scheduler.finished(first)
    put(scheduler, "long", 24, 1, priority=-1)
    assert parts(device.step()) == [("long", 0, 8)]
    assert device.pool.available == 6  # enough but for the long one's other 4
    while not scheduler.is_empty:
        device.step()
    assert second.preemptions == 1 and len(second.output) == 12


def test_a_preempted_one_that_needs_the_whole_pool_comes_back():
    scheduler, device = make(pages=4)
    b = put(scheduler, "b", 4, 13, priority=1)
    while b.computed < 11:
        device.step()
    put(scheduler, "a", 1, 4)
    while not b.preemptions and not scheduler.is_empty:
        device.step()
    assert len(b.tokens) == 13  # a page more than its own would be the fifth
    for _ in range(10):
        device.step()
    assert scheduler.is_empty and len(b.output) == 13


def test_a_prompt_in_prefill_takes_the_pages_that_are_there():
    scheduler, device = make(pages=6, token_budget=16)
    put(scheduler, "a", 8, 5)
    long = put(scheduler, "long", 20, 1)
    assert parts(device.step()) == [("a", 0, 8), ("long", 0, 8)]
    plan = device.step()  # "a" takes its third page
    assert parts(plan) == [("long", 8, 4)] and long.preemptions == 0


def test_the_second_in_prefill_preempts_nobody():
    scheduler, device = make(pages=8, token_budget=17)
    put(scheduler, "third", 6, 3, priority=1)
    device.step()
    put(scheduler, "first", 29, 1)
    put(scheduler, "second", 16, 1)
    assert parts(device.step()) == [("first", 0, 8), ("second", 0, 8)]
    plan = device.step()
    assert ids(plan.decodes) == ["third"] and parts(plan) == [("first", 8, 8)] and not plan.preempted
    plan = device.step()  # "third" has ended
    assert parts(plan) == [("first", 16, 8)] and not plan.preempted
    plan = device.step()
    assert parts(plan) == [("first", 24, 5)] and ids(plan.preempted) == ["second"]


def test_nobody_is_admitted_in_a_step_that_preempts():
    scheduler, device, _ = crowded(pages=7, token_budget=32)
    put(scheduler, "better", 1, 1, priority=-1)
    plan = device.step()
    assert plan.preempted and not plan.chunks
    assert parts(device.step()) == [("better", 0, 1)]


def test_nobody_overtakes_in_a_step_that_preempts():
    scheduler, device = make(pages=5, token_budget=9)
    put(scheduler, "last", 8, 10, priority=1)
    device.step()
    put(scheduler, "long", 20, 1)
    assert parts(device.step()) == [("long", 0, 8)]
    put(scheduler, "a", 2, 1)
    plan = device.step()
    assert ids(plan.preempted) == ["last"] and parts(plan) == [("long", 8, 8)]


def test_admission_preempts_nobody():
    scheduler, device = make(pages=3)
    put(scheduler, "a", 8, 2, priority=1)
    device.step()
    put(scheduler, "better", 8, 1)
    plan = device.step()
    assert ids(plan.decodes) == ["a"] and not plan.preempted and not plan.chunks


def test_missing_pages_are_told_and_not_waited_for():
    scheduler, device = make(pages=3)
    put(scheduler, "a", 8, 2)
    device.step()
    device.pool.take(1)
    with pytest.raises(RuntimeError, match=r"^sequence 'a' needs a page that no sequence holds"):
        scheduler.plan()
