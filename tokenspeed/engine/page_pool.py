"""Whom each page of a paged KV cache belongs to, and which pages hold what can be used again. The arrays are elsewhere.

A page is in use (it has references), cached (it has none, but its content is known and can be found) or free. A full
page is known by its tokens and the known page before it, since keys and values depend on all tokens before them. The
tokens themselves are compared, and a page is known no longer than the one before it, so what is found is what it says.
"""

import dataclasses
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence

START = -1  # stands before the first page of a sequence


@dataclasses.dataclass(kw_only=True, frozen=True)
class PoolStats:
    """Since the pool was made: tokens looked for by `take_prefix`, those found, and known pages lost to make room."""

    queried_tokens: int = 0
    hit_tokens: int = 0
    evictions: int = 0


class PagePool:
    """The pages 0 to `pages` - 1, of `page_size` tokens. Without `reuse`, `register` only checks, and nothing is found.

    A prefix is found in multiples of `together` pages.

    What a method is given wrong is a ValueError that names the page or the argument.
    """

    def __init__(self, pages: int, page_size: int, *, reuse: bool = True, together: int = 1):
        if pages < 1 or page_size < 1:
            raise ValueError(f"pages, page_size: expected 1 or more of each, got {pages}, {page_size}")
        if together < 1:
            raise ValueError(f"together: expected 1 or more, got {together}")
        self.pages, self.page_size, self.reuse, self._together = pages, page_size, reuse, together
        self.stats = PoolStats()
        self._references = [0] * pages
        self._free = list(reversed(range(pages)))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._keys: dict[int, tuple] = {}  # of a known page: (the page before it, its tokens)
        self._known: dict[tuple, int] = {}  # by these
        self._next: dict[int, set[int]] = defaultdict(set)  # known pages by the one before them
        self._barred: set[int] = set()  # forgotten while in use

    @property
    def used(self) -> int:
        return self.pages - self.available

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def available(self) -> int:
        """Pages that `take` can give: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def occupancy(self) -> float:
        """The share of the pages that are in use, 0 to 1."""
        return self.used / self.pages

    def take(self, count: int) -> list[int] | None:
        """That many pages with one reference each; None where there are not so many, and then nothing changes.

        Free pages go first, then cached ones, least recently used first. What follows an evicted page becomes unknown
        too, and free if it was cached. Mostly it went before, see `release`, but its owner may have had a copy of the
        page before it in place of the known one.
        """
        if count < 0:
            raise ValueError(f"count: expected 0 or more, got {count}")
        if count > self.available:
            return None
        lost = 0
        while len(self._free) < count:
            lost += self._make_unknown(next(iter(self._cached)))
        if lost:
            self.stats = dataclasses.replace(self.stats, evictions=self.stats.evictions + lost)
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._references[page] = 1
        return taken

    def take_prefix(self, tokens: Sequence[int]) -> list[int]:
        """The pages, with one reference more each, of the longest known prefix; cached ones leave `available`.

        The last token is never in them. It is computed again, since its logits are wanted.
        """
        found = self._find(tokens)
        for page in found:
            self._references[page] += 1
            self._cached.pop(page, None)
        queried, hit = self.stats.queried_tokens + len(tokens), self.stats.hit_tokens + len(found) * self.page_size
        self.stats = dataclasses.replace(self.stats, queried_tokens=queried, hit_tokens=hit)
        return found

    def peek(self, tokens: Sequence[int]) -> int:
        """How many tokens `take_prefix` would find; changes nothing."""
        return len(self._find(tokens)) * self.page_size

    def register(self, pages: Sequence[int], tokens: Sequence[int], *, start: int = 0) -> None:
        """Makes full pages known, but for one whose content another is known for, or that follows one not to be found.

        The pages are a sequence's, in order and in use; the tokens are what they hold, all written. Those before index
        `start` were registered already.
        """
        full = len(tokens) // self.page_size
        if full > len(pages):
            raise ValueError(f"pages: expected {full} or more for {len(tokens)} tokens, got {len(pages)}")
        if not 0 <= start <= full:
            raise ValueError(f"start: expected 0 to {full}, got {start}")
        self._expect(dict.fromkeys(pages[:full], 1))
        end = next((i for i, page in enumerate(pages[:full]) if page in self._barred), full) if self.reuse else 0
        begin, before = 0, START
        if start and pages[start - 1] in self._keys:  # spares the walk from the first page
            begin, before = start - 1, self._keys[pages[start - 1]][0]
        for i, block in enumerate(self._blocks(tokens, begin, end), begin):
            page, key = pages[i], (before, block)
            if self._keys.get(page, key) != key:
                raise ValueError(f"page {page}: is known already, and to hold other tokens")
            if key not in self._known:
                if i < start:
                    return
                self._known[key], self._keys[page] = page, key
                self._next[before].add(page)
            before = self._known[key]

    def share(self, pages: Sequence[int]) -> None:
        """One reference more each, of pages in use."""
        self._expect(dict.fromkeys(pages, 1))
        for page in pages:
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One reference less each, of a sequence's pages in order; without any, a page is cached if known, else free.

        The last are evicted first, since a beginning is of use to more others. Hits leave it so: who takes a page takes
        all before it, and releases them after it.
        """
        self._expect(Counter(pages))
        for page in reversed(pages):
            self._references[page] -= 1
            if not self._references[page]:
                self._barred.discard(page)
                if page in self._keys:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def forget(self, pages: Sequence[int]) -> None:
        """Makes pages unknown, and what follows them. They stay so while in use, hence call it before `release`."""
        self._expect(dict.fromkeys(pages, 0))
        self._barred.update(page for page in pages if self._references[page])
        for page in pages:
            if page in self._keys:
                self._make_unknown(page)

    def writable(self, page: int) -> bool:
        """Whether it can be appended to: it has one owner, and nobody can find it."""
        self._expect({page: 0})
        return self._references[page] == 1 and page not in self._keys

    def replace(self, page: int) -> int | None:
        """Copy on write: another page for one reference, or None; the caller copies the arrays."""
        self._expect({page: 1})
        if self.writable(page):
            raise ValueError(f"page {page}: expected one that is shared or known; it can be written to as it is")
        if (taken := self.take(1)) is None:
            return None
        if page in self._barred:
            self._barred.update(taken)
        self.release([page])
        return taken[0]

    def _blocks(self, tokens: Sequence[int], begin: int, end: int) -> Iterator[tuple[int, ...]]:
        return (tuple(tokens[i * self.page_size : (i + 1) * self.page_size]) for i in range(begin, end))

    def _find(self, tokens: Sequence[int]) -> list[int]:
        found = [START]
        for block in self._blocks(tokens, 0, (len(tokens) - 1) // self.page_size):
            if (page := self._known.get((found[-1], block))) is None:
                break
            found.append(page)
        known = len(found) - 1
        return found[1 : 1 + known - known % self._together]

    def _make_unknown(self, page: int) -> int:
        """This page and all that follow it; how many they are."""
        self._next[self._keys[page][0]].remove(page)
        gone = [page]
        for page in gone:
            gone += self._next.pop(page, ())
            del self._known[self._keys.pop(page)]
            if page in self._cached:
                del self._cached[page]
                self._free.append(page)
        return len(gone)

    def _expect(self, needed: Mapping[int, int]) -> None:
        for page, count in needed.items():
            if not 0 <= page < self.pages:
                raise ValueError(f"page {page}: expected 0 to {self.pages - 1}")
            if (has := self._references[page]) < count:
                raise ValueError(f"page {page}: expected {count} or more references, it has {has}")
