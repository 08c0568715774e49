"""The scheduler's policy, rule by rule; pages of 4 tokens, chunks of 8 and a budget of 16, unless said otherwise."""

import pytest

from tests.tokenspeed.engine.paging import FakePool, ids, limits, make, parts, put, token_of
from tokenspeed.engine.scheduler import Scheduler
from tokenspeed.engine.sequence import State


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
    assert [parts(device.step()) for _ in range(2)] == [[("long", 16, 4)], [("a", 0, 5)]]


@pytest.mark.parametrize(
    "prompts, steps",
    [
        ([6, 6, 6], [[(0, 0, 6), (1, 0, 6)], [(2, 0, 6)]]),
        ([8, 9], [[(0, 0, 8)], [(1, 0, 9)]]),
        ([4, 13], [[(0, 0, 4), (1, 0, 12)], [(1, 12, 1)]]),  # more than half of a step is too much to leave
        ([12, 20], [[(0, 0, 12), (1, 0, 4)], [(1, 4, 16)]]),  # in parts it comes anyway
        ([20, 14], [[(0, 0, 16)], [(0, 16, 4), (1, 0, 12)]]),
    ],
    ids=str,
)
def test_what_is_left_of_a_step_begins_no_prompt_that_the_next_one_takes_whole(prompts, steps):
    scheduler, device = make(token_budget=16, chunk=16)
    for id, length in enumerate(prompts):
        put(scheduler, id, length, 1)
    assert [parts(device.step()) for _ in steps] == steps


@pytest.mark.parametrize("far", [0, 90, 180, 200, 600])
def test_short_prompts_go_on_beside_a_long_one_however_far_it_is(far):
    """Its chunks leave as little in every step; the farther it is the less, as attention has its price."""
    how = dict(max_context=1000, token_budget=40, prefill_budget=32, long_budget=16, attention_tokens=64, chunk=16)
    scheduler, device = make(pages=300, **how)
    put(scheduler, "decoding", 4, 400)
    device.step()
    long = put(scheduler, "long", 800, 1)
    while long.computed < far:
        device.step()
    for number, length in enumerate((4, 8, 11, 12, 15)):
        short = put(scheduler, number, length, 1)
        steps = 0
        while short.in_prefill or short in scheduler.waiting:
            device.step()
            steps += 1
        assert steps <= 4, "not until the long one ends"
        assert long in scheduler.running


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


def test_a_long_prompt_beside_decodes_has_fewer_tokens_the_farther_a_chunk_begins():
    how = dict(long_budget=20, attention_tokens=64, pass_tokens=2)
    scheduler, device = make(token_budget=40, chunk=32, max_context=400, prefill_budget=32, **how)
    long = put(scheduler, "long", 120)
    assert device.step().chunks == ((long, 0, 32),), "nobody waits for it"
    decode = put(scheduler, "decode", 4, 100)
    device.step()
    taken = []
    while long.in_prefill:
        plan = device.step()
        assert plan.decodes == (decode,)
        taken += [(start, length) for _, start, length in plan.chunks]
    for start, length in taken[:-1]:
        assert length == max(4, int((20 - 2) / (1 + start / 64)) // 4 * 4)
    assert taken[0][1] > 4 and taken[-2][1] == 4


def test_short_prompts_fit_beside_a_long_one_that_others_wait_for():
    scheduler, device = make(token_budget=40, chunk=32, max_context=400, prefill_budget=16, overtakes=0)
    put(scheduler, "decode", 4, 100)
    device.step()
    long = put(scheduler, "long", 200)
    assert [length for *_, length in device.step().chunks] == [16]
    for i in range(5):
        short = put(scheduler, i, 6, 1)
        assert {s: length for s, _, length in device.step().chunks} == {long: 8, short: 6}


def test_a_step_with_a_long_prompt_has_a_budget_of_its_own():
    scheduler, device = make(token_budget=40, chunk=32, max_context=400, prefill_budget=32, long_budget=12)
    put(scheduler, "decode", 4, 100)
    device.step()
    short = put(scheduler, "short", 32)
    assert device.step().chunks == ((short, 0, 32),)
    long = put(scheduler, "long", 80)
    lengths = []
    while long.to_prefill or not long.computed:
        lengths += [length for *_, length in device.step().chunks]
    assert lengths == [12] * 6 + [8]


def test_prefill_beside_decodes_has_its_own_budget_however_many_wait():
    scheduler, device = make(token_budget=40, chunk=32, max_context=100, prefill_budget=16, max_rows=4)
    put(scheduler, "decode", 4, 50)
    device.step()
    for name in ("a", "b"):
        put(scheduler, name, 16, 50)
    for name in ("a", "b"):
        assert [(s.id, length) for s, _, length in device.step().chunks] == [(name, 16)]


def test_a_chunk_is_as_long_as_the_longest_length_that_fits():
    scheduler, device = make(token_budget=40, chunk=40, max_context=400, lengths=(8, 16))
    for prompt, lengths in ((33, [33]), (77, [32, 32, 13])):
        s, found = put(scheduler, prompt, prompt), []
        while s.to_prefill or not s.computed:
            found += [length for *_, length in device.step().chunks]
        assert found == lengths


@pytest.mark.parametrize("changed, message", [
    (dict(lengths=(8, 6)), "lengths: expected multiples of 4, where chunks begin, got 6"),
    (dict(prefill_budget=7), "prefill_budget: expected 0, or 8 or more"),
    (dict(align=6), "align: expected a multiple of the page size, 4, got 6"),
    (dict(align=12, chunk=16), "chunk: expected a multiple of align, 12, got 16"),
])  # fmt: skip
def test_budgets_that_do_not_go_together_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        make(**changed)
