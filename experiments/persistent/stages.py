"""A layer as data: how many chunks each program streams in each stage, what it waits for, and what it signals.

A stage's weight lies in chunks of equal size; chunk j of program p is number j * programs + p of the stage, so that
after chunk j of every program the outputs (or partial sums) of the first (j + 1) * programs chunks are there. What the
last round has beyond the weight is padding. Counters say how far others are: each signal of a stage has one for every
group of programs, in every layer, and its value is how many programs have signalled.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping

from experiments.bench.models import config_of

GROUPS = 8
"""Programs are grouped by the KV head whose attention they compute; the models here have eight."""


@dataclasses.dataclass(frozen=True)
class Wait:
    """Before chunk `chunk` of its stage, for part `part` of what `stage` makes, by all programs or the own group."""

    chunk: int
    stage: str
    part: int
    own: bool = False


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a layer.

    Attributes:
        name: of its weight. chunks: of each program.
        signals: after how many chunks each part of its output is done; the last is `chunks`.
        groups: of programs that are counted apart. waits: in the order of their chunks.
    """

    name: str
    chunks: int
    signals: tuple[int, ...]
    groups: int = 1
    waits: tuple[Wait, ...] = ()


@dataclasses.dataclass(frozen=True)
class Signal:
    """Adds one to counter `counter` of the layer (of the own group, where there are several).

    It says that one of `parts` parts of a stage's output is there.
    """

    counter: int
    groups: int
    parts: int


@dataclasses.dataclass(frozen=True)
class Await:
    """Until counters `counter` to `counter + groups` of a layer (or that of the own group) have all their programs.

    `layers_back` is 1 for what the layer before makes, else 0; `index` counts the waits of a layer.
    """

    index: int
    counter: int
    groups: int
    parts: int
    own: bool
    layers_back: int


Event = Signal | Await


@dataclasses.dataclass(frozen=True)
class Step:
    """Events in their order, then chunks that are streamed without any."""

    events: tuple[Event, ...]
    chunks: int


def weight_bytes(model: str, bits: int) -> dict[str, int]:
    """Of a layer's weights, by stage."""
    m = config_of(model)
    heads, kv_heads = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    elements = dict(
        qkv=(heads + 2 * kv_heads) * m.d_model,
        attention=0,
        out=heads * m.d_model,
        gate_up=2 * m.d_ff * m.d_model,
        down=m.d_ff * m.d_model,
    )
    return {name: count * bits // 8 for name, count in elements.items()}


def chunk_counts(weights: Mapping[str, int], programs: int, chunk_bytes: int) -> dict[str, int]:
    """Chunks of each program by stage, the last round padded."""
    return {name: -(-size // (programs * chunk_bytes)) for name, size in weights.items()}


def chunk_index(program: int, j: int, programs: int) -> int:
    """Which chunk of a stage's weight is the program's j-th."""
    return j * programs + program


def group_of(program, programs: int):
    """The group of a program, of `GROUPS`."""
    return program * GROUPS // programs


def group_sizes(programs: int) -> tuple[int, ...]:
    groups = [group_of(program, programs) for program in range(programs)]
    return tuple(groups.count(group) for group in range(GROUPS))


def steps_of(stages: tuple[Stage, ...]) -> tuple[Step, ...]:
    """A layer in the order of a program: every chunk of every stage, and every event once, at its chunk."""
    first, steps, events, waits = counters(stages), [], [], itertools.count()
    order = [stage.name for stage in stages]
    for at, stage in enumerate(stages):
        cuts = sorted({0, stage.chunks, *stage.signals, *(wait.chunk for wait in stage.waits)})
        for begin, end in zip(cuts, [*cuts[1:], None]):
            events += [
                Signal(first[stage.name] + part * stage.groups, stage.groups, len(stage.signals))
                for part, done in enumerate(stage.signals)
                if done == begin and begin
            ]
            for wait in stage.waits:
                if wait.chunk == begin:
                    made = stages[order.index(wait.stage)]
                    events.append(
                        Await(
                            next(waits), first[made.name] + wait.part * made.groups, made.groups, len(made.signals),
                            wait.own, int(order.index(wait.stage) >= at),
                        )
                    )  # fmt: skip
            if not stage.chunks:
                events += [Signal(first[stage.name], stage.groups, 1)] if stage.signals else []
            if end is not None:
                steps.append(Step(tuple(events), end - begin))
                events = []
    return (*steps, Step(tuple(events), 0))


def counters(stages: tuple[Stage, ...]) -> dict[str, int]:
    """The first counter of each stage; the number of all under the empty name."""
    sizes = [len(stage.signals) * stage.groups for stage in stages]
    starts = itertools.accumulate(sizes, initial=0)
    return dict(zip([*(stage.name for stage in stages), ""], starts))


def _even(chunks: int, parts: int) -> tuple[int, ...]:
    """Ends of at most `parts` nearly equal parts."""
    parts = min(parts, chunks)
    return tuple(chunks * (part + 1) // parts for part in range(parts))


def _strict(counts: Mapping[str, int], back: int = 1) -> tuple[Stage, ...]:
    """After every stage each program waits for all others; with `back` 2, for what they made a stage before."""
    names = list(counts)
    return tuple(
        Stage(name, n, (n,), waits=(Wait(0, names[at - back], 0),)) for at, (name, n) in enumerate(counts.items())
    )


def five(counts: Mapping[str, int]) -> tuple[Stage, ...]:
    """A barrier over the grid after every stage."""
    return _strict(counts)


def late(counts: Mapping[str, int]) -> tuple[Stage, ...]:
    """The same, one stage late: not a decode step, but what barriers that nobody waits for cost."""
    return _strict(counts, 2)


def four(counts: Mapping[str, int]) -> tuple[Stage, ...]:
    """Without a barrier between attention and out, as if a cluster had both."""
    return _strict({name: n for name, n in counts.items() if name != "attention"})


def three(counts: Mapping[str, int]) -> tuple[Stage, ...]:
    """The same, and the columns of down on the program that has their rows of gate_up: its outputs are partial sums."""
    return _strict(dict(qkv=counts["qkv"], out=counts["out"], mlp=counts["gate_up"] + counts["down"]))


def _tiled(counts: Mapping[str, int], quarters: int, ends: int, own_out: bool) -> tuple[Stage, ...]:
    qkv, out, gate_up, down = (counts[name] for name in ("qkv", "out", "gate_up", "down"))
    gate_up_ends, out_ends = _even(gate_up, min(quarters, down)), _even(out, 4)
    needs = _needs("gate_up", len(gate_up_ends), down)
    last = down - needs[-1].chunk
    down_ends = tuple(down - last + end for end in _even(last, ends))
    return (
        Stage("qkv", qkv, (qkv,), GROUPS, _spread("down", len(down_ends), qkv)),
        Stage("attention", 0, (0,), GROUPS, (Wait(0, "qkv", 0, own=True),)),
        Stage("out", out, out_ends, waits=(Wait(0, "attention", 0, own=own_out),)),
        Stage("gate_up", gate_up, gate_up_ends, waits=_spread("out", len(out_ends), gate_up)),
        Stage("down", down, down_ends, waits=needs),
    )


def tiles(counts: Mapping[str, int]) -> tuple[Stage, ...]:
    """Waits for parts of the activation, as late as they are needed.

    Attention needs its group's rows of qkv alone. out finishes the residual stream in four quarters, and the first four
    chunks of gate_up are as many rows as four of its other chunks, but a quarter of the inputs each; so it is with down
    and qkv. down goes through its inputs in four quarters, and finishes its rows in the last: it begins when gate_up is
    far beyond what its first quarter needs.
    """
    return _tiled(counts, quarters=4, ends=4, own_out=False)


def groups(counts: Mapping[str, int]) -> tuple[Stage, ...]:
    """`tiles` whose out needs its group's attention alone: its outputs are partial sums of eight groups."""
    return _tiled(counts, quarters=4, ends=4, own_out=True)


def slack(counts: Mapping[str, int]) -> tuple[Stage, ...]:
    """`groups` whose down goes through its inputs in halves, and finishes its rows in the last six chunks."""
    return _tiled(counts, quarters=2, ends=6, own_out=True)


def groups_three(counts: Mapping[str, int]) -> tuple[Stage, ...]:
    """`three` with attention and out in a group, and out's four quarters as in `tiles`."""
    qkv, out, mlp = counts["qkv"], counts["out"], counts["gate_up"] + counts["down"]
    out_ends = _even(out, 4)
    return (
        Stage("qkv", qkv, (qkv,), GROUPS, (Wait(0, "mlp", 0),)),
        Stage("attention", 0, (0,), GROUPS, (Wait(0, "qkv", 0, own=True),)),
        Stage("out", out, out_ends, waits=(Wait(0, "attention", 0, own=True),)),
        Stage("mlp", mlp, (mlp,), waits=_spread("out", len(out_ends), mlp)),
    )


def _spread(stage: str, parts: int, chunks: int) -> tuple[Wait, ...]:
    """Each of the first `parts` chunks waits for a part; where they are fewer, for as many as it takes."""
    first = min(parts, chunks)
    return tuple(Wait(part * first // parts, stage, part) for part in range(parts))


def _needs(stage: str, parts: int, chunks: int) -> tuple[Wait, ...]:
    """A part for each of so many nearly equal runs of chunks."""
    return tuple(Wait(chunks * part // parts, stage, part) for part in range(parts))


STRUCTURES: dict[str, Callable[[Mapping[str, int]], tuple[Stage, ...]]] = dict(
    five=five, late=late, four=four, three=three, tiles=tiles, groups=groups, slack=slack, groups_three=groups_three
)
