"""The variants by name, and what each is of."""

import dataclasses

from experiments.persistent.design import Design


@dataclasses.dataclass(frozen=True)
class Variant:
    """A structure of a layer (of `stages.STRUCTURES`), and how it is streamed."""

    structure: str
    design: Design


def _of(structure: str, **design) -> Variant:
    return Variant(structure, Design(**design))


_HELD = dict(whole=True, hold=4)
_COPIER = dict(copier="warpgroup")
_POLLER = dict(copier="warpgroup", poller=True)
_DATA = dict(barriers="data")
_EVEN = dict(programs=128)
VARIANTS: dict[str, Variant] = {
    # What bounds the others: no barriers at all; signals that nobody waits for; barriers that are over when asked for.
    "none": _of("five", barriers="none"),
    "none-128": _of("five", barriers="none", **_EVEN),
    "late": _of("late"),
    # A barrier over the grid after every stage, by counters or by flags beside the data; how long each wait is.
    "five": _of("five"),
    "five-data": _of("five", **_DATA),
    "five-trace": _of("five", trace=True),
    # Waits for parts of the activation; 128 programs, by which the chunks of 1B are divided evenly; roles.
    "slack": _of("slack"),
    "slack-128": _of("slack", **_EVEN),
    "slack-128-data": _of("slack", **_DATA, **_EVEN),
    "slack-128-poller": _of("slack", **_POLLER, **_EVEN),
    "slack-128-data-poller": _of("slack", **_DATA, **_POLLER, **_EVEN),
    "groups-three-128-data": _of("groups_three", **_DATA, **_EVEN),
    # The same, one change at a time.
    "groups-128-data-poller": _of("groups", **_DATA, **_POLLER, **_EVEN),
    "groups-three-128-data-poller": _of("groups_three", **_DATA, **_POLLER, **_EVEN),
    "groups-three-reduce": _of("groups_three", reduce_kib=8),
    "slack-trace": _of("slack", trace=True),
    "slack-128-copier": _of("slack", **_COPIER, **_EVEN),
    "five-128": _of("five", **_EVEN),
    "five-copier": _of("five", **_COPIER),
    "five-poller": _of("five", **_POLLER),
    # All words are read; four chunks wait in registers, beside the ring.
    "five-whole": _of("five", whole=True),
    "five-held": _of("five", **_HELD),
    "slack-128-held": _of("slack", **_HELD, **_EVEN),
    # A launch that cannot end: it must, by the limit of its polls, and say so.
    "stuck": _of("five", barriers="stuck"),
    # Other rings.
    "slack-128-14": _of("slack", slots=14, **_EVEN),
    "five-8k": _of("five", kib=8, slots=28),
    "five-32k": _of("five", kib=32, slots=7),
    "five-apart": _of("five", apart=True),
    # What is left to compare.
    "signals": _of("five", barriers="signals"),
    "tiles": _of("tiles"),
    "groups": _of("groups"),
    "groups-three": _of("groups_three"),
    "four": _of("four"),
    "three": _of("three"),
    "slack-data": _of("slack", **_DATA),
    "slack-copier-warp": _of("slack", copier="warp"),
    "five-flags": _of("five", barriers="flags"),
    # Constructs that could fail, or hang: last.
    "five-read": _of("five", barriers="read"),
    "five-pipeline": _of("five", copier="pipeline"),
    "five-device": _of("five", barriers="device"),
    "five-system": _of("five", barriers="system"),
}
"""What matters most comes first: a run that has no time left leaves out the others."""
BOUNDS, STRICT = ("none", "none-128"), "five"
"""What no variant of as many programs can be faster than, and what each is to be faster than."""
STUCK = "stuck"
"""The one that must fail."""
