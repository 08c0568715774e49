"""How a program streams, as data."""

import dataclasses

LANES, WORD = 128, 4
"""A chunk is rows of so many words, of so many bytes."""
MIX = 31
"""A checksum is 31 times itself plus the next word, modulo 2^32: it depends on the order."""
COPIERS = ("inline", "warpgroup", "warp", "pipeline")
"""inline: who frees a slot asks for its next chunk. warpgroup, warp: one that only copies. pipeline: Pallas's own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """One way to stream.

    Attributes:
        kib: of a chunk. slots: of a program's ring. programs: of the launch.
        barriers: of `barriers.KINDS`. copier: of `COPIERS`.
        poller: a thread that waits for other programs in place of the one that consumes, which waits for it alone; only
            with a copier that is a warpgroup.
        hold: chunks that are moved into registers before a wait, so that their slots are asked for again (of a layer).
        whole: read all words of a chunk; else the last one.
        apart: each program's chunks lie together in memory; else those that are read at the same time do.
        reduce_kib: of partial sums that every program adds to those of the others at the end of a layer.
        trace: keep the cycles of every wait.
    """

    kib: int = 16
    slots: int = 13
    programs: int = 132
    barriers: str = "poll"
    copier: str = "inline"
    poller: bool = False
    hold: int = 0
    whole: bool = False
    apart: bool = False
    reduce_kib: int = 0
    trace: bool = False

    def __post_init__(self):
        if self.poller and self.copier != "warpgroup":
            raise ValueError(f"poller: expected copier 'warpgroup', got {self.copier!r}")
        own_ring = self.hold or self.apart or self.reduce_kib or self.trace
        if self.copier == "pipeline" and own_ring:
            raise ValueError("copier: 'pipeline' takes no hold, apart, reduce_kib or trace")

    @property
    def threads(self) -> int:
        """Pallas's, which are warpgroups."""
        return 1 + (self.copier != "inline") + self.poller

    @property
    def rows(self) -> int:
        return self.kib * 1024 // LANES // WORD
