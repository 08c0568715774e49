"""Pace: how long the next step may wait, so that little is ahead of whoever comes, and the device is never idle."""

from collections import defaultdict, deque
from collections.abc import Hashable

MOST_S = 8e-3
"""That everything started and unfinished lasts at most, or a single step where that is longer: a newcomer's chunk waits
for it, and so do the pages of a request that is cancelled."""
LEAD_S = 2.5e-3
"""Before the end of what is under way the next step is started at the latest: earlier where the host has taken longer
to start one, and by as much as it has been late."""
RECENT = 4
"""Steps of a kind by whose shortest the end of the next is told."""


class Pace:
    """What steps have taken, by what they compute. Times are in seconds, of any one clock."""

    def __init__(self):
        self._took: dict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._under_way: deque[tuple[Hashable, float]] = deque()
        self._ended = 0.0
        self._due: float | None = None
        self._starting: float | None = None
        self._starts: deque[float] = deque([0.0], maxlen=RECENT)
        self._late: deque[float] = deque([0.0], maxlen=RECENT)

    def starting(self, now: float) -> None:
        """The host comes to start a step."""
        self._starting = now
        if self._due is not None:
            self._late.append(max(0.0, now - self._due))
            self._due = None

    def begun(self, kind: Hashable, now: float) -> None:
        """A step was started. Steps of a kind take about as long."""
        if self._starting is not None:
            self._starts.append(now - self._starting)
            self._starting = None
        self._under_way.append((kind, now))

    def ended(self, now: float) -> None:
        """The first of those under way has ended."""
        kind, begun = self._under_way.popleft()
        began = max(begun, self._ended)
        took, known = now - began, min(self._took[kind], default=0.0)
        if self._under_way and known and self._under_way[-1][1] >= began + known:
            took = min(took, known / 2)  # the next was started late: the device may have waited, and longer each time
        self._took[kind].append(took)
        self._ended = now

    def forget(self) -> None:
        """Nothing is under way any more, whenever it ended."""
        self._under_way.clear()

    def hold(self, now: float) -> float:
        """How long to wait before the next step is started, which is taken to last as long as the one under way."""
        if len(self._under_way) != 1:
            return 0.0
        kind, begun = self._under_way[0]
        takes = min(self._took[kind], default=0.0)
        due = max(begun, self._ended) + takes - max(max(LEAD_S, *self._starts) + max(self._late), MOST_S - takes)
        if due > now:
            self._due = due
        return max(0.0, due - now)
