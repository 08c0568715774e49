"""The picture of decode: what share of the memory's read ceiling a step reaches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench import tables
from experiments.bench.pictures import save
from experiments.bench.record import Record

BAR = ("implementation", "batch", "page_size", "kv_dtype")
PEER_MARKS = {"vllm": ("D", "tab:orange", "vLLM"), "torch": ("^", "tab:purple", "torch.compile")}
"""Marker, colour and name of each other engine."""


def draw_decode(records: Sequence[Record], path: str | Path, peers: Sequence[Record] = ()) -> str:
    """Percent of the read ceiling by model, context and batch; returns a line about the picture.

    Args:
        records: of kind 'decode', one of each case and implementation.
        peers: of kind 'peer', of the same device: marks at the cases that they have in common.
    """
    counted = [one for one in records if one["status"] == "ok"]
    if not counted:
        return "No picture: no time of decode counts."
    path = Path(path)
    return save(
        lambda plt: _bars(plt, counted, [one for one in peers if one["status"] == "ok"]), path.parent, path.stem
    )


def peer_shares(found: Record, peers: Sequence[Record]) -> dict[str, list[float]]:
    """By engine, the percents of the ceiling that the records of other engines reach at a record's case."""
    alike = [one for one in peers if all(one[f] == found[f] for f in ("device", "model", "dtype", "batch", "context"))]
    shares: dict[str, list[float]] = {}
    for one in alike:
        shares.setdefault(one["engine"], []).append(100 * found["floor_ms"] / one["ms_per_token"])
    return shares


def _bars(plt: Any, records: Sequence[Record], peers: Sequence[Record]) -> Any:
    """A panel a model, in it a group of bars a context, a bar a batch and kind of cache; others' shares are marks."""
    panels = list(dict.fromkeys((one["model"], one["dtype"]) for one in records))
    fused = [one for one in records if one["implementation"] != "xla"]
    bars = sorted({tuple(one[field] for field in BAR) for one in fused or records})
    contexts = sorted({one["context"] for one in records})
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(max(6.0, 0.42 * len(contexts) * len(bars) + 2), 3.3 * len(panels)), squeeze=False,
        sharex=True, sharey=True, layout="constrained",
    )  # fmt: skip
    width = 0.86 / len(bars)

    def place(one, bar):
        return contexts.index(one["context"]) + (bars.index(bar) - (len(bars) - 1) / 2) * width

    labelled = set()

    def label(name):
        return None if name in labelled else (labelled.add(name) or name)

    for axis, (model, dtype) in zip(axes[:, 0], panels):
        here = [one for one in records if (one["model"], one["dtype"]) == (model, dtype)]
        for i, (name, batch, page_size, kv_dtype) in enumerate(bars):

            def by(implementation, rest=(batch, page_size, kv_dtype)):
                return [one for one in here if tuple(one[field] for field in BAR) == (implementation, *rest)]

            own = by(name)
            at = [place(one, bars[i]) for one in own]
            drawn = axis.bar(
                at, [one["percent_of_ceiling"] for one in own], width, color=plt.cm.viridis(i / len(bars)),
                label=label(tables.in_pages(f"{name}, batch {batch}", page_size, kv_dtype)),
            )  # fmt: skip
            axis.bar_label(
                drawn, [f"{one['ms_per_token']:.3g} ms" for one in own], fontsize=6.5, rotation=90, padding=3,
                bbox=dict(facecolor="white", edgecolor="none", pad=0.5),
            )  # fmt: skip
            for one, x in zip(own, at):
                for engine, shares in peer_shares(one, peers).items():
                    marker, colour, shown = PEER_MARKS[engine]
                    axis.plot(
                        [x] * len(shares), shares, marker, color=colour, ms=4, mec="k", mew=0.4, label=label(shown)
                    )
            if fused:
                plain = by("xla")
                xs, shares = [place(one, bars[i]) for one in plain], [one["percent_of_ceiling"] for one in plain]
                if plain:
                    left, right = [x - width / 2 for x in xs], [x + width / 2 for x in xs]
                    axis.hlines(shares, left, right, color="r", label=label("plain XLA"))
        ceilings = [one["ceiling_gbps"] for one in here]
        axis.axhline(100, color="0.3", ls="--", lw=1)
        axis.set_title(
            f"{model}, {dtype}; ceiling of each run {min(ceilings):.0f} to {max(ceilings):.0f} GB/s", fontsize=9
        )
        axis.set_ylabel("% of the read ceiling")
        axis.set_xticks(range(len(contexts)), [f"context {context}" for context in contexts])
    axes[0, 0].set_ylim(0, 1.3 * max(100, *(one["percent_of_ceiling"] for one in records)))
    handles, names = zip(*(pair for axis in axes[:, 0] for pair in zip(*axis.get_legend_handles_labels())))
    axes[0, 0].legend(handles, names, fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"Decode on {records[-1]['device']}, {records[-1]['steps']} steps a sample", fontsize=10)
    return figure
