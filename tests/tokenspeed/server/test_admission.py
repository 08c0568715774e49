"""Admission: bounds hold, and what has left counts no more."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenspeed.server.admission import Admission, Bounds
from tokenspeed.server.errors import ApiError


@pytest.mark.parametrize("bounds, message", [
    (Bounds(concurrent=2), "there are 2 requests under way, of 2 at most"),
    (Bounds(queue=2), "there are 2 requests that wait, of 2 at most"),
    (Bounds(queue_tokens=25), "there are 20 tokens that wait, of 25 at most"),
])  # fmt: skip
def test_too_many_are_told_to_come_again(bounds, message):
    admission = Admission(bounds)
    for _ in range(2):
        admission.ticket(10)
    with pytest.raises(ApiError) as refused:
        admission.ticket(10)
    assert refused.value.status == 429 and refused.value.message.startswith(message)
    assert int(refused.value.headers["Retry-After"]) >= 1 and admission.rejections == 1


def test_a_long_prompt_waits_where_nobody_does():
    admission = Admission(Bounds(queue_tokens=25))
    with admission.ticket(1000):
        assert admission.waiting_tokens == 1000
    assert admission.waiting_tokens == 0


class Requests(RuleBasedStateMachine):
    @initialize(most=st.tuples(*[st.none() | st.integers(1, 6)] * 2), tokens=st.none() | st.integers(1, 50))
    def begin(self, most, tokens):
        self.bounds = Bounds(concurrent=most[0], queue=most[1], queue_tokens=tokens)
        self.admission, self.alive = Admission(self.bounds), {}

    @rule(tokens=st.integers(1, 30))
    def comes(self, tokens):
        try:
            self.alive[self.admission.ticket(tokens)] = tokens
        except ApiError:
            assert self.bounds != Bounds()

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def begins(self, data):
        ticket = data.draw(st.sampled_from(list(self.alive)))
        ticket.begun()
        self.alive[ticket] = 0

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def leaves(self, data):
        ticket = data.draw(st.sampled_from(list(self.alive)))
        with ticket:
            pass
        del self.alive[ticket]

    @invariant()
    def counts(self):
        if not hasattr(self, "admission"):
            return
        waiting = [tokens for tokens in self.alive.values() if tokens]
        assert self.admission.under_way == len(self.alive) <= (self.bounds.concurrent or 1 << 30)
        assert self.admission.waiting == len(waiting) <= (self.bounds.queue or 1 << 30)
        assert self.admission.waiting_tokens == sum(waiting)


TestRequests = Requests.TestCase


def test_tokens_are_cut_or_refused():
    assert Bounds().tokens(1000) == 1000
    assert Bounds(max_tokens=10).tokens(10) == Bounds(max_tokens=10).tokens(11) == 10
    with pytest.raises(ApiError, match=r"^max_tokens: expected at most 10, got 11$") as refused:
        Bounds(max_tokens=10, refuse=True).tokens(11)
    assert (refused.value.status, refused.value.param) == (400, "max_tokens")
