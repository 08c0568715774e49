"""The scheduler's policy, rule by rule; pages of 4 tokens, chunks of 8 and a budget of 16, unless said otherwise."""

import pytest

from tests.tokenspeed.engine.paging import FakePool, limits, make, put, token_of
from tokenspeed.engine.scheduler import Scheduler
from tokenspeed.engine.sequence import State


def ids(sequences):
    return [s.id for s in sequences]


def parts(plan):
    return [(s.id, start, length) for s, start, length in plan.chunks]


@pytest.mark.parametrize("name", ["max_rows", "token_budget", "chunk", "max_context"])
def test_limits_are_positive(name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        limits(**{name: 0})


def test_limits_go_with_the_page_size():
    with pytest.raises(ValueError, match=r"^token_budget: expected 7 or more.*got 6$"):
        make(token_budget=6)
    make(token_budget=7)
    with pytest.raises(ValueError, match=r"^chunk: expected a multiple of the page size, 4, got 6$"):
        make(chunk=6)


def test_what_can_never_fit_is_refused_at_once():
    scheduler, _ = make(pages=5)  # 20 keys
    with pytest.raises(ValueError, match=r"^prompt and max_tokens: expected at most 5 pages, .* got 10 \+ 12: 6$"):
        put(scheduler, "a", 10, 12)
    with pytest.raises(ValueError, match=r"^prompt and max_tokens: expected at most max_context, 64, .* got 10 \+ 55$"):
        put(scheduler, "a", 10, 55)
    assert scheduler.is_empty
    put(scheduler, "a", 10, 11)  # the last token needs no key
    put(make()[0], "a", 10, 54)


def test_an_id_is_under_way_once():
    scheduler, _ = make()
    first = put(scheduler, "a", 3)
    with pytest.raises(ValueError, match=r"^id: expected one that is not under way, got 'a'$"):
        put(scheduler, "a", 3)
    scheduler.finished(first)
    put(scheduler, "a", 3)
    with pytest.raises(ValueError, match="expected one that was not added before"):
        make()[0].add(first)


def test_a_prompt_gives_its_first_token_by_its_last_chunk_and_the_others_by_decode():
    scheduler, device = make()
    s = put(scheduler, "a", 18, 3)
    plans = [scheduler.plan()]
    device.run(plans[0])
    assert (s.computed, s.pending) == (8, 0) and not plans[0].chunks[0].final
    plans += [device.step() for _ in range(3)]
    assert [parts(plan) for plan in plans] == [[("a", 0, 8)], [("a", 8, 8)], [("a", 16, 2)], []]
    assert [ids(plan.decodes) for plan in plans] == [[], [], [], ["a"]]
    assert s.output == [token_of(s, 0), token_of(s, 1)]
    device.step()
    assert s.state is State.FINISHED and len(s.output) == 3 and scheduler.is_empty


def test_decodes_come_first_and_chunks_take_what_is_left():
    scheduler, device = make(token_budget=10, max_rows=6)
    for id in "abc":
        put(scheduler, id, 2, 10)
    device.step()
    put(scheduler, "d", 9)
    plan = device.step()
    assert ids(plan.decodes) == ["a", "b", "c"]
    assert parts(plan) == [("d", 0, 4)]  # whole pages of the 7 left
    assert parts(device.step()) == [("d", 4, 5)]  # or all that is left of the prompt


def test_rows_are_limited():
    scheduler, device = make(max_rows=2)
    for id in "abc":
        put(scheduler, id, 2, 2)
    assert parts(device.step()) == [("a", 0, 2), ("b", 0, 2)]
    assert (len(scheduler.waiting), len(scheduler.running)) == (1, 2)
    device.step()  # ends both
    assert parts(device.step()) == [("c", 0, 2)]


def test_waiting_ones_are_admitted_by_priority_then_arrival():
    scheduler, device = make(max_rows=1)
    for id, priority in (("a", 1), ("b", 0), ("c", 1), ("d", 0), ("e", -1)):
        put(scheduler, id, 2, 1, priority)
    assert [parts(device.step())[0][0] for _ in range(5)] == ["e", "b", "d", "a", "c"]


def test_nobody_goes_before_a_short_prompt_that_does_not_fit():
    scheduler, device = make(pages=4)
    put(scheduler, "a", 8, 5)
    device.step()
    put(scheduler, "b", 8)  # of two pages there is one, once "a" has taken its third
    put(scheduler, "c", 1)
    assert not device.step().chunks
    assert ids(scheduler.waiting) == ["b", "c"]


def test_a_newcomer_overtakes_a_long_prompt_so_often():
    scheduler, device = make(token_budget=8, overtakes=2)
    put(scheduler, "long", 40, 1)
    assert parts(device.step()) == [("long", 0, 8)]
    for id in "abc":
        put(scheduler, id, 3, 1)
    # Three fit the budget but for a page, one at a time.
    assert parts(device.step()) == [("a", 0, 3), ("long", 8, 4)]
    assert parts(device.step()) == [("b", 0, 3), ("long", 12, 4)]
    assert parts(device.step()) == [("long", 16, 8)]
    assert parts(device.step()) == [("long", 24, 8)]
    assert parts(device.step()) == [("long", 32, 8)]
    assert parts(device.step()) == [("c", 0, 3)]


def test_a_newcomer_that_leaves_no_page_to_the_long_prompt_waits():
    scheduler, device = make(token_budget=8)
    put(scheduler, "long", 20, 1)
    device.step()
    put(scheduler, "a", 5, 1)
    assert parts(device.step()) == [("long", 8, 8)]
    assert parts(device.step()) == [("long", 16, 4), ("a", 0, 4)]


def test_a_prompt_with_a_chunk_left_is_not_long():
    scheduler, device = make(token_budget=8)
    put(scheduler, "first", 16, 1)
    device.step()
    put(scheduler, "a", 3, 1)
    assert parts(device.step()) == [("first", 8, 8)]


def test_what_fits_beside_a_long_prompt_does_not_overtake_it():
    scheduler, device = make(token_budget=16)
    long = put(scheduler, "long", 40, 1)
    device.step()
    put(scheduler, "a", 3, 1)
    put(scheduler, "b", 5, 1)
    assert parts(device.step()) == [("long", 8, 8), ("a", 0, 3), ("b", 0, 5)]
    assert long.overtaken == 0


def test_a_long_prompt_that_waits_is_overtaken_so_often():
    scheduler, device = make(token_budget=7, overtakes=2)
    put(scheduler, "first", 2, 30)
    device.step()
    put(scheduler, "second", 2, 30)
    device.step()
    first = put(scheduler, "long", 20, 2)
    put(scheduler, "other", 20, 2)
    assert parts(device.step()) == [("long", 0, 4)]  # of a budget of 5
    for id in "abc":
        put(scheduler, id, 1, 1)
    assert parts(device.step()) == [("a", 0, 1), ("long", 4, 4)]  # "a" went before "other" as well
    assert first.overtaken == 1 and scheduler.waiting[0].overtaken == 1
    assert parts(device.step()) == [("b", 0, 1), ("long", 8, 4)]
    assert parts(device.step()) == [("long", 12, 4)]
    assert ids(scheduler.waiting) == ["other", "c"]


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


def test_the_next_step_is_planned_before_tokens_have_come():
    scheduler, device = make()
    s = put(scheduler, "a", 4, 3)
    for computed, pending in ((4, 1), (5, 2)):
        device.run(scheduler.plan())
        assert (s.computed, s.pending, s.output) == (computed, pending, [])
    device.deliver(but=1)
    assert (s.output, s.pending, s.length - s.computed) == ([token_of(s, 0)], 1, 1)
    device.run(scheduler.plan())
    assert s.exhausted and not s.pages and s.state is State.RUNNING
    assert scheduler.plan().tokens == 0  # nothing beyond max_tokens
    device.deliver()
    assert s.output == [token_of(s, i) for i in range(3)] and scheduler.is_empty


def test_a_token_of_a_preempted_sequence_arrives_and_it_waits_for_it():
    scheduler, device = make(pages=3)
    a, b = put(scheduler, "a", 4, 6), put(scheduler, "b", 3, 6)
    device.run(scheduler.plan())
    device.run(scheduler.plan())  # "a" takes the last page
    plan = scheduler.plan()
    assert ids(plan.preempted) == ["b"] and b.pending == 2
    device.run(plan)
    scheduler.finished(a)
    assert not scheduler.plan().chunks  # its tokens are not known, though pages are there
    device.deliver()
    assert b.output == [token_of(b, 0), token_of(b, 1)]
    assert parts(device.step()) == [("b", 0, 5)]
    assert b.output[2:] == [token_of(b, 2)]


def test_tokens_of_an_ended_sequence_are_dropped_and_others_refused():
    scheduler, device = make()
    s = put(scheduler, "a", 4, 3)
    with pytest.raises(ValueError, match=r"^sequence 'a': expected no token, none is pending$"):
        scheduler.append(s, 1)
    device.run(scheduler.plan())
    scheduler.append(s, 1)
    device.run(scheduler.plan())
    scheduler.finished(s)
    scheduler.append(s, 2)
    assert s.output == [1]


def test_a_plan_is_dispatched_once_and_the_last_one_only():
    scheduler, device = make()
    put(scheduler, "a", 20)
    old, new = scheduler.plan(), scheduler.plan()
    assert parts(old) == parts(new) == [("a", 0, 8)]  # dropped, and planned again
    with pytest.raises(ValueError, match=r"^plan: expected the last one, once$"):
        scheduler.advance(old)
    device.run(new)
    with pytest.raises(ValueError, match=r"^plan: expected the last one, once$"):
        scheduler.advance(new)


@pytest.mark.parametrize(
    "when", ["waiting", "prefill", "planned", "planned decode", "decode", "preempted", "exhausted"]
)
def test_cancel_releases_in_any_state(when):
    scheduler, device = make(pages=6, max_rows=2)
    if when == "waiting":
        put(scheduler, "x", 4, 4)
        put(scheduler, "y", 4, 4)
        device.step()
    s = put(scheduler, "a", 15, 1 if when == "exhausted" else 10)
    plan = None
    if when == "preempted":
        put(scheduler, "first", 4, 20, priority=-1)
    if when != "waiting":
        device.step()
    if when in ("decode", "planned decode"):
        device.step()
        device.step()
    if "planned" in when:
        plan = scheduler.plan()
    elif when == "exhausted":
        device.run(scheduler.plan())
        assert s.exhausted
    while when == "preempted" and not s.preemptions and not scheduler.is_empty:
        device.step()
    assert scheduler.cancel("a") is s
    assert s.state is State.FINISHED and not s.pages and s not in scheduler.waiting + scheduler.running
    if plan is not None:
        computed = s.computed
        scheduler.advance(plan)
        assert (s.computed, s.pending) == (computed, 0)
    device.deliver()
    assert scheduler.cancel("a") is None
    scheduler.finished(s)  # once more does nothing
    for other in "x", "y", "first":
        scheduler.cancel(other)
    assert scheduler.is_empty and device.pool.available == 6


def test_only_what_was_added_is_finished():
    scheduler, _ = make()
    s = put(scheduler, "a", 3)
    with pytest.raises(ValueError, match=r"^sequence 'a': expected one that was added$"):
        Scheduler(FakePool(4, 4), limits()).finished(s)


def test_waits_are_counted_in_steps():
    scheduler, device = make(max_rows=1)
    a, b = put(scheduler, "a", 2, 3), put(scheduler, "b", 2, 1)
    for waited in range(1, 4):
        device.step()
        assert scheduler.longest_wait == waited
    device.step()
    assert (a.queue_steps, b.queue_steps, scheduler.longest_wait, scheduler.steps) == (0, 3, 0, 4)


def test_prefill_beside_decodes_has_a_budget_of_its_own_that_shrinks_with_the_distance():
    scheduler, device = make(token_budget=40, chunk=32, max_context=400, mixed_budget=16, attention_tokens=64)
    long = put(scheduler, "long", 120)
    assert device.step().chunks == ((long, 0, 32),), "nobody waits for it"
    decode = put(scheduler, "decode", 4, 100)
    device.step()
    lengths = []
    while long.in_prefill:
        plan = device.step()
        assert plan.decodes == (decode,)
        lengths += [length for *_, length in plan.chunks]
    assert lengths == sorted(lengths, reverse=True) and set(lengths) == {8, 4}


def test_short_prompts_fit_beside_a_long_one_that_others_wait_for():
    scheduler, device = make(token_budget=40, chunk=32, max_context=400, mixed_budget=16, overtakes=0)
    put(scheduler, "decode", 4, 100)
    device.step()
    long = put(scheduler, "long", 200)
    assert [length for *_, length in device.step().chunks] == [16]
    for i in range(5):
        short = put(scheduler, i, 6, 1)
        assert {s: length for s, _, length in device.step().chunks} == {long: 8, short: 6}


@pytest.mark.parametrize("changed, message", [
    (dict(mixed_budget=7), "mixed_budget: expected 0, or 8 or more"),
    (dict(align=6), "align: expected a multiple of the page size, 4, got 6"),
    (dict(align=12, chunk=16), "chunk: expected a multiple of align, 12, got 16"),
])  # fmt: skip
def test_budgets_that_do_not_go_together_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        make(**changed)
