"""Pages go to who asks, come back, and are found again by exactly the tokens that they hold."""

import copy
import sys
from collections import Counter

import hypothesis
import pytest
from hypothesis import stateful
from hypothesis import strategies as st

from tokenspeed.engine.page_pool import PagePool, PoolStats

Z = 2  # tokens of a page
SAME_HASH = sys.hash_info.modulus  # as that of 0
A, B, C = (1, 2), (3, 4), (5, 6)  # full pages


def take(pool, count) -> list[int]:
    taken = pool.take(count)
    assert taken is not None
    return taken


def replace(pool, page) -> int:
    fresh = pool.replace(page)
    assert fresh is not None and fresh != page
    return fresh


def prefill(pool, tokens):
    """The pages of a sequence as an engine gets them: found, or taken and registered."""
    pages = pool.take_prefix(tokens)
    known = len(pages)
    pages += take(pool, -(-len(tokens) // pool.page_size) - known)
    pool.register(pages, tokens, start=known)
    return pages


def counts(pool):
    return pool.used, pool.cached, pool.available


def test_pages_are_taken_once_and_come_back():
    pool = PagePool(4, Z)
    first, second = take(pool, 3), take(pool, 1)
    assert sorted(first + second) == [0, 1, 2, 3]
    assert counts(pool) == (4, 0, 0) and pool.occupancy == 1.0
    pool.release(first)
    assert counts(pool) == (1, 0, 3) and pool.occupancy == 0.25
    assert sorted(take(pool, 3)) == sorted(first)


def test_take_gives_all_or_nothing():
    pool = PagePool(4, Z)
    pool.release(prefill(pool, A))
    take(pool, 2)
    before = counts(pool)
    assert pool.take(3) is None
    assert counts(pool) == before and pool.peek(A + (0,)) == 2 and pool.stats.evictions == 0
    assert take(pool, 0) == []
    assert len(take(pool, 2)) == 2


def test_a_prefix_is_found_in_whole_pages_and_without_the_last_token():
    pool = PagePool(8, Z)
    pages = prefill(pool, A + B + (5,))
    assert [pool.peek((A + B + C)[:n]) for n in range(7)] == [0, 0, 0, 2, 2, 4, 4]
    assert pool.take_prefix(A + B) == pages[:1]
    assert pool.take_prefix(A + B + (0,)) == pages[:2]
    assert pool.take_prefix(B + A) == []  # the same pages in another order
    assert pool.take_prefix(()) == []
    assert pool.used == 3


def test_what_is_found_has_one_reference_more():
    pool = PagePool(8, Z)
    pages = prefill(pool, A + B)
    found = pool.take_prefix(A + B + C)
    pool.release(pages)
    assert counts(pool) == (2, 0, 6)
    pool.release(found)
    assert counts(pool) == (0, 2, 8)
    assert pool.take_prefix(A + B + C) == pages  # from those that are cached
    assert counts(pool) == (2, 0, 6)


def test_queries_and_hits_are_counted_and_peek_changes_nothing():
    pool = PagePool(8, Z)
    assert pool.stats == PoolStats(queried_tokens=0, hit_tokens=0, evictions=0)
    pages = prefill(pool, A + B)
    pool.release(pages)
    before = pool.stats
    assert pool.peek(A + C) == 2
    assert pool.stats is before and counts(pool) == (0, 2, 8)
    pool.take_prefix(A + C)
    assert pool.stats == PoolStats(queried_tokens=8, hit_tokens=2, evictions=0)


def test_peek_does_not_make_a_page_recently_used():
    pool = PagePool(2, Z)
    pool.release(prefill(pool, A))
    pool.release(prefill(pool, B))
    pool.peek(A + (0,))
    take(pool, 1)
    assert pool.peek(A + (0,)) == 0 and pool.peek(B + (0,)) == 2


def test_equal_hashes_are_no_hit():
    assert hash((0, 1)) == hash((SAME_HASH, 1))
    pool = PagePool(4, Z)
    zeros = prefill(pool, (0, 1, 0, 1))
    assert pool.peek((SAME_HASH, 1, 0)) == 0
    assert pool.peek((0, 1, SAME_HASH, 1, 0)) == 2
    others = prefill(pool, (SAME_HASH, 1, 0, 1))
    assert pool.take_prefix((0, 1, 0, 1, 7)) == zeros
    assert pool.take_prefix((SAME_HASH, 1, 0, 1, 7)) == others


def test_free_pages_go_before_cached_ones_and_these_from_the_least_recently_used():
    pool = PagePool(5, Z)
    a, b, c = (prefill(pool, tokens) for tokens in (A, B, C))
    for pages in (b, a, c):
        pool.release(pages)
    pool.release(pool.take_prefix(B + (0,)))  # used again: a is now the oldest
    assert not {*a, *b, *c} & set(take(pool, 2))
    assert [take(pool, 1) for _ in range(3)] == [a, c, b]
    assert pool.stats.evictions == 3
    assert counts(pool) == (5, 0, 0) and pool.peek(B + (0,)) == 0


def test_the_end_of_a_sequence_is_evicted_before_its_beginning():
    pool = PagePool(3, Z)
    pages = prefill(pool, A + B + C)
    pool.release(pages)
    pool.release(pool.take_prefix(A + (0,)))
    found = []
    for _ in range(3):
        take(pool, 1)
        found.append(pool.peek(A + B + C + (0,)))
    assert found == [4, 2, 0]
    assert pool.stats.evictions == 3


@pytest.mark.parametrize("child_in_use", [False, True])
def test_what_follows_an_evicted_page_is_lost_with_it(child_in_use):
    """Whose owner has a copy of the page before: the known one can be cached for longer than what follows it."""
    pool = PagePool(4, Z)
    known, own = take(pool, 1), take(pool, 2)
    pool.register(known, A)
    pool.register(own, A + B)  # own[0] holds what is known already, own[1] follows the known page
    pool.release(known)
    assert pool.peek(A + B + (0,)) == 4
    if not child_in_use:
        pool.release(own)
    take(pool, pool.available - pool.cached + 1)  # all that are free, and the oldest cached one
    assert pool.peek(A + B + (0,)) == 0 and pool.cached == 0 and pool.stats.evictions == 2
    if child_in_use:
        pool.release(own)
        assert counts(pool) == (2, 0, 2)  # free, not cached where nobody finds it
    else:
        assert counts(pool) == (3, 0, 1)


def test_content_that_is_known_already_stays_with_its_page():
    pool = PagePool(4, Z)
    first, second = take(pool, 2), take(pool, 2)
    pool.register(first, A + B)
    pool.register(second, A + C)
    assert pool.take_prefix(A + C + (0,)) == [first[0], second[1]]
    pool.release([first[0], second[1]])
    pool.release(second)
    assert counts(pool) == (2, 1, 2)  # second[0] was not known


def test_registering_goes_on_from_where_it_stopped():
    pool = PagePool(8, Z)
    tokens, pages = A + B + C, take(pool, 4)
    pool.register(pages, tokens[:3])
    assert pool.peek(tokens + (0,)) == 2
    pool.register(pages, tokens, start=1)
    assert pool.peek(tokens + (0,)) == 6
    pool.register(pages, tokens)  # nothing is left to make known
    pool.register(pages, tokens, start=3)
    assert pool.take_prefix(tokens + (0,)) == pages[:3]
    assert pool.writable(pages[3])


def test_a_page_that_follows_one_that_cannot_be_found_is_not_made_known():
    pool = PagePool(8, Z)
    pages = take(pool, 2)
    pool.register(pages, A + B, start=1)
    pool.release(pages)
    assert pool.peek(A + B + (0,)) == 0 and pool.cached == 0


def test_nothing_is_known_without_reuse():
    pool = PagePool(4, Z, reuse=False)
    pages = prefill(pool, A + B)
    assert pool.take_prefix(A + B + C) == [] and pool.peek(A + B + C) == 0
    assert pool.writable(pages[0])
    pool.release(pages)
    assert counts(pool) == (0, 0, 4)
    assert pool.stats == PoolStats(queried_tokens=10, hit_tokens=0, evictions=0)


def test_shared_pages_stay_until_their_last_owner_goes():
    pool = PagePool(4, Z)
    pages = prefill(pool, A + (3,))
    pool.share(pages)
    pool.share(pages)
    for used in (2, 2, 0):
        pool.release(pages)
        assert pool.used == used
    assert counts(pool) == (0, 1, 4)


def test_forgotten_pages_and_what_follows_them_are_not_found():
    pool = PagePool(8, Z)
    pages = prefill(pool, A + B)
    child = prefill(pool, A + B + C)
    other = prefill(pool, A + C)
    pool.release(child)
    assert pool.cached == 1  # C below B
    pool.forget(pages[1:])
    assert pool.peek(A + B + C + (0,)) == 2
    assert counts(pool) == (3, 0, 5)  # references stay, and what was cached is free
    assert pool.take_prefix(A + C + (0,)) == other
    pool.forget(pages)
    assert pool.peek(A + C + (0,)) == 0


def test_a_forgotten_page_stays_unknown_until_it_is_free():
    pool = PagePool(3, Z)
    pages = prefill(pool, A + B)
    pool.share(pages)  # by a sample that goes on
    pool.forget(pages[:1])
    pool.release(pages)
    pool.register(pages, A + B)
    assert pool.peek(A + B + (0,)) == 0
    pool.release(pages)
    assert counts(pool) == (0, 0, 3)
    pages = take(pool, 3)
    pool.register(pages, A + B + C)
    assert pool.take_prefix(A + B + C + (0,)) == pages


def test_cached_pages_are_free_once_they_are_forgotten():
    pool = PagePool(2, Z)
    pages = prefill(pool, A + B)
    pool.release(pages)
    pool.forget(pages)
    assert counts(pool) == (0, 0, 2)
    pages = prefill(pool, A + B)
    assert pool.take_prefix(A + B + (0,)) == pages


def test_the_copy_of_a_forgotten_page_stays_unknown_too():
    pool = PagePool(3, Z)
    pages = take(pool, 1)
    pool.share(pages)
    pool.forget(pages)
    fresh = replace(pool, pages[0])
    assert pool.writable(fresh) and pool.writable(pages[0])
    pool.register([fresh], A)
    assert pool.peek(A + (0,)) == 0


def test_a_page_can_be_written_to_by_its_only_owner_while_it_is_unknown():
    pool = PagePool(4, Z)
    (page,) = take(pool, 1)
    assert pool.writable(page)
    pool.share([page])
    assert not pool.writable(page)
    pool.release([page])
    assert pool.writable(page)
    pool.register([page], A)
    assert not pool.writable(page)
    pool.forget([page])
    assert pool.writable(page)
    pool.release([page])
    assert not pool.writable(page)  # it is nobody's


def test_a_shared_page_is_replaced_before_it_is_written_to():
    pool = PagePool(2, Z)
    (page,) = take(pool, 1)
    pool.share([page])
    fresh = replace(pool, page)
    assert pool.writable(fresh) and pool.writable(page)
    assert counts(pool) == (2, 0, 0)
    pool.share([page])
    assert pool.replace(page) is None
    assert not pool.writable(page)  # nothing changed


def test_a_known_page_is_replaced_by_another_and_stays_known():
    pool = PagePool(2, Z)
    (page,) = prefill(pool, A)
    fresh = replace(pool, page)
    assert pool.writable(fresh)
    assert pool.take_prefix(A + (0,)) == [page]
    assert pool.replace(page) is None


WRONG = {
    "no pages": (lambda pool: PagePool(0, Z), "pages, page_size: expected 1 or more of each, got 0, 2"),
    "no tokens": (lambda pool: PagePool(4, 0), "pages, page_size: expected 1 or more of each, got 4, 0"),
    "take": (lambda pool: pool.take(-1), "count: expected 0 or more, got -1"),
    "release": (lambda pool: pool.release([0, 3]), "page 3: expected 1 or more references, it has 0"),
    "release twice": (lambda pool: pool.release([0, 1, 1]), "page 1: expected 2 or more references, it has 1"),
    "release of none": (lambda pool: pool.release([0, -1]), "page -1: expected 0 to 3"),
    "share": (lambda pool: pool.share([0, 3]), "page 3: expected 1 or more references, it has 0"),
    "share of none": (lambda pool: pool.share([0, 4]), "page 4: expected 0 to 3"),
    "writable of none": (lambda pool: pool.writable(4), "page 4: expected 0 to 3"),
    "forget of none": (lambda pool: pool.forget([0, 4]), "page 4: expected 0 to 3"),
    "replace": (lambda pool: pool.replace(3), "page 3: expected 1 or more references, it has 0"),
    "replace needlessly": (lambda pool: pool.replace(1), "page 1: expected one that is shared or known"),
    "register too few": (
        lambda pool: pool.register([0, 1], A + B + C),
        "pages: expected 3 or more for 6 tokens, got 2",
    ),
    "register free": (lambda pool: pool.register([0, 3], A + B), "page 3: expected 1 or more references, it has 0"),
    "register none": (lambda pool: pool.register([0, 9], A + B), "page 9: expected 0 to 3"),
    "register other tokens": (lambda pool: pool.register([0], B), "page 0: is known already, and to hold other tokens"),
    "register elsewhere": (lambda pool: pool.register([1, 0], B + A), "page 0: is known already, and to hold other"),
    "register others before": (lambda pool: pool.register([0, 1], B + C, start=1), "page 0: is known already, and to"),
    "register behind": (lambda pool: pool.register([0, 1], A + B, start=3), "start: expected 0 to 2, got 3"),
    "register before": (lambda pool: pool.register([0, 1], A + B, start=-1), "start: expected 0 to 2, got -1"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_misuse_names_what_is_wrong(wrong):
    call, message = WRONG[wrong]
    pool = PagePool(4, Z)
    assert take(pool, 3) == [0, 1, 2]
    pool.register([0], A)
    with pytest.raises(ValueError, match=f"^{message}"):
        call(pool)
    assert counts(pool) == (3, 0, 1) and pool.peek(A + (0,)) == 2


class Sequence:
    """Tokens, their pages, and how many of these were registered by it."""

    def __init__(self, tokens, pages, registered=0):
        self.tokens, self.pages, self.registered = tokens, pages, registered


class Engine(stateful.RuleBasedStateMachine):
    """Sequences that come, grow, fork, break and go, beside a model that keeps whole prefixes and searches everything.

    `arrays[page]` is what a KV cache would hold: at each place, all tokens up to it.
    """

    sequences = stateful.Bundle("sequences")
    PAGES = 8
    TOKEN = st.sampled_from([0, SAME_HASH, 1])

    def __init__(self):
        super().__init__()
        self.pool = PagePool(self.PAGES, Z)
        self.live: list[Sequence] = []
        self.arrays = {page: [None] * Z for page in range(self.PAGES)}
        self.known: dict[tuple[int, ...], int] = {}  # by all tokens to its end
        self.ever: set[tuple[int, ...]] = set()
        self.cached: list[int] = []  # least recently used first
        self.barred: set[int] = set()
        self.queried = self.hit = self.evictions = 0

    # The model: what must come of what the rules do.

    def owners(self):
        return Counter(page for sequence in self.live for page in sequence.pages)

    def free(self):
        return set(range(self.PAGES)) - self.owners().keys() - set(self.cached)

    def prefixes(self, tokens):
        return [tuple(tokens[:end]) for end in range(Z, len(tokens) + 1, Z)]

    def longest(self, tokens):
        """The pages of the longest known prefix, without the last token."""
        prefixes = self.prefixes(tokens[:-1])
        count = next((i for i, prefix in enumerate(prefixes) if prefix not in self.known), len(prefixes))
        return [self.known[prefix] for prefix in prefixes[:count]]

    def lose(self, page):
        """How many pages become unknown with this one."""
        (end,) = (prefix for prefix, known in self.known.items() if known == page)
        gone = [prefix for prefix in self.known if prefix[: len(end)] == end]
        self.cached = [page for page in self.cached if page not in [self.known[prefix] for prefix in gone]]
        for prefix in gone:
            del self.known[prefix]
        return len(gone)

    def take(self, count):
        taken = self.pool.take(count)
        if count > len(self.free()) + len(self.cached):
            assert taken is None
            return None
        assert taken is not None
        while count > len(self.free()):
            self.evictions += self.lose(self.cached[0])
        assert len(taken) == len(set(taken)) == count and set(taken) <= self.free()
        for page in taken:
            self.arrays[page] = [None] * Z
        return taken

    def let_go(self, pages):
        """What becomes of the pages that have lost an owner, in the order of the list."""
        for page in pages:
            if page not in self.owners():
                self.barred.discard(page)
                if page in self.known.values():
                    self.cached.append(page)

    def write(self, sequence, position):
        page, at = sequence.pages[position // Z], position % Z
        self.arrays[page][at] = tuple(sequence.tokens[: position + 1])

    def publish(self, sequence, start):
        """Registers what is full."""
        self.pool.register(sequence.pages, sequence.tokens, start=start)
        for i, prefix in enumerate(self.prefixes(sequence.tokens)):
            page = sequence.pages[i]
            if page in self.barred or (prefix not in self.known and i < start):
                break
            self.known.setdefault(prefix, page)
            self.ever.add(prefix)
        sequence.registered = len(sequence.tokens) // Z

    # What an engine does.

    @stateful.rule(target=sequences, tokens=st.lists(TOKEN, min_size=1, max_size=9), publish=st.booleans())
    def start(self, tokens, publish):
        expected = self.longest(tokens)
        assert self.pool.peek(tokens) == len(expected) * Z
        pages = self.pool.take_prefix(tokens)
        assert pages == expected
        for page, prefix in zip(pages, self.prefixes(tokens)):
            assert self.arrays[page] == [prefix[:-1], prefix] and page not in self.barred
        self.queried += len(tokens)
        self.hit += len(pages) * Z
        self.cached = [page for page in self.cached if page not in pages]
        sequence = Sequence(list(tokens), pages, len(pages))
        self.live.append(sequence)
        rest = self.take(-(-len(tokens) // Z) - len(pages))
        if rest is None:
            self.end(sequence)
            return stateful.multiple()
        sequence.pages = pages + rest
        for position in range(len(pages) * Z, len(tokens)):
            self.write(sequence, position)
        if publish:
            self.publish(sequence, sequence.registered)
        return sequence

    @stateful.rule(sequence=sequences, tokens=st.lists(TOKEN, min_size=1, max_size=3), publish=st.booleans())
    def grow(self, sequence, tokens, publish):
        for token in tokens if sequence in self.live else ():
            position = len(sequence.tokens)
            if position % Z == 0:
                taken = self.take(1)
                if taken is None:
                    return
                sequence.pages = sequence.pages + taken
            elif not self.pool.writable(sequence.pages[-1]) and not self.replace_page(sequence, position // Z):
                return
            sequence.tokens = [*sequence.tokens, token]
            self.write(sequence, position)
            if publish and (position + 1) % Z == 0:
                self.publish(sequence, sequence.registered)

    @stateful.rule(sequence=sequences, again=st.booleans())
    def register(self, sequence, again):
        if sequence in self.live:
            self.publish(sequence, 0 if again else sequence.registered)

    @stateful.rule(target=sequences, sequence=sequences)
    def fork(self, sequence):
        if sequence not in self.live:
            return stateful.multiple()
        self.pool.share(sequence.pages)
        self.live.append(Sequence(sequence.tokens, sequence.pages, sequence.registered))
        return self.live[-1]

    def replace_page(self, sequence, index):
        """Copy on write; whether there was a page for it."""
        page = sequence.pages[index]
        if self.owners()[page] == 1 and page not in self.known.values():
            with pytest.raises(ValueError, match=f"page {page}:"):
                self.pool.replace(page)
            return True
        room = self.free() or self.cached
        fresh = self.pool.replace(page)
        if not room:
            assert fresh is None
            return False
        if not self.free():
            self.evictions += self.lose(self.cached[0])
        assert fresh in self.free()
        self.arrays[fresh] = list(self.arrays[page])
        if page in self.barred:
            self.barred.add(fresh)
        sequence.pages = [*sequence.pages[:index], fresh, *sequence.pages[index + 1 :]]
        self.let_go([page])
        return True

    @stateful.rule(sequence=sequences, data=st.data())
    def replace(self, sequence, data):
        if sequence in self.live:
            self.replace_page(sequence, data.draw(st.integers(0, len(sequence.pages) - 1)))

    @stateful.rule(sequence=stateful.consumes(sequences))
    def finish(self, sequence):
        if sequence in self.live:
            self.end(sequence)

    def end(self, sequence):
        self.live.remove(sequence)
        self.pool.release(sequence.pages)
        self.let_go(reversed(sequence.pages))

    @stateful.rule(sequence=sequences, data=st.data())
    def break_down(self, sequence, data):
        """Its pages, or those from one on, hold what is not finite."""
        if sequence in self.live:
            pages = sequence.pages[data.draw(st.integers(0, len(sequence.pages) - 1)) :]
            self.pool.forget(pages)
            self.barred.update(pages)
            for page in pages:
                if page in self.known.values():
                    self.lose(page)

    @stateful.rule(page=st.integers(0, PAGES - 1))
    def release_what_is_not_used(self, page):
        if page not in self.owners():
            with pytest.raises(ValueError, match=f"page {page}:"):
                self.pool.release([*self.owners(), page])

    # What always holds.

    @stateful.invariant()
    def counts_add_up(self):
        used = len(self.owners())
        assert counts(self.pool) == (used, len(self.cached), self.PAGES - used)
        assert self.pool.occupancy == used / self.PAGES
        assert self.pool.stats == PoolStats(queried_tokens=self.queried, hit_tokens=self.hit, evictions=self.evictions)

    @stateful.invariant()
    def nobody_writes_to_what_another_reads(self):
        for sequence in self.live:
            for position in range(len(sequence.tokens)):
                held = self.arrays[sequence.pages[position // Z]][position % Z]
                assert held == tuple(sequence.tokens[: position + 1])

    @stateful.invariant()
    def cached_pages_are_found_and_lost_ones_are_not(self):
        assert all(prefix[:-Z] in self.known or len(prefix) == Z for prefix in self.known)
        assert set(self.cached) <= {*self.known.values()} and not self.barred & {*self.known.values()}
        for prefix in self.ever:
            assert self.pool.peek((*prefix, 0)) == len(self.longest((*prefix, 0))) * Z

    @stateful.invariant()
    def references_are_those_of_the_owners(self):
        owners = self.owners()
        for page in range(self.PAGES):
            assert self.pool.writable(page) == (owners[page] == 1 and page not in self.known.values())
        pool = copy.deepcopy(self.pool)
        for sequence in self.live:
            pool.release(sequence.pages)
            owners -= Counter(sequence.pages)
            assert pool.used == len(owners)
        assert pool.available == self.PAGES
        assert sorted(take(pool, self.PAGES)) == [*range(self.PAGES)]
        assert counts(pool) == (self.PAGES, 0, 0)

    def teardown(self):
        for sequence in list(self.live):
            self.end(sequence)
        self.counts_add_up()
        self.cached_pages_are_found_and_lost_ones_are_not()


@pytest.mark.parametrize("examples, steps", [(20, 30), pytest.param(100, 50, marks=pytest.mark.slow)])
def test_what_always_holds(examples, steps):
    settings = hypothesis.settings(max_examples=examples, stateful_step_count=steps)
    stateful.run_state_machine_as_test(Engine, settings=settings)
