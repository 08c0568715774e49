"""The table that makes the claim: a step of decode beside its floor and beside others, on one card."""

import textwrap
from collections.abc import Sequence
from typing import Any

from experiments.bench import tables
from experiments.bench.models import QUANTISED
from experiments.bench.record import Record
from experiments.bench.tables import Table, number
from experiments.decode.table import newest, xla_beside
from experiments.report.origin import origin
from experiments.report.sections import WIDTH
from tokenspeed.models.kv_dtypes import AUTO

CONTEXT, BATCHES = 1024, (1, 8)
"""One sequence, and a few."""
HEADER = (
    "model", "batch", "floor ms", "**ms a token** (p5 to p95)", "% of the floor's rate", "plain XLA ms",
    "torch.compile ms", "vLLM ms",
)  # fmt: skip
COMMAND = "python -m experiments.decode --config=decode.py --batches=1,8"
PEERS = "python -m experiments.peers --engine=vllm"
WHAT = (
    "A token of greedy decode on one {device}, bf16, context {context}, random weights, from embedding to argmax, each "
    "step on the one before. The floor is the bytes of weights and cache at the read ceiling, measured in the same run."
)


def claim(records: Sequence[Record], device: str) -> str:
    """The claim of one device in Markdown, with where it comes from; '' where there is no record of it."""
    mine = [found for found in records if found["device"] == device]
    steps = [found for found in steps_of(mine) if found["batch"] in BATCHES and found["model"] not in QUANTISED]
    if not steps:
        return ""
    peers = [found for found in mine if found["kind"] == "peer" and found["status"] == "ok"]
    shown = [found for found in peers if any(alike(found, step) for step in steps)]
    beside = [found for step in steps if (found := xla_beside(step, mine))]
    models = ",".join(dict.fromkeys(step["model"] for step in steps))
    parts = [
        textwrap.fill(WHAT.format(device=device, context=CONTEXT), WIDTH),
        tables.markdown(*_table(steps, mine, peers)),
        origin([*steps, *beside], f"{COMMAND} --models={models}")
        + (f"\\\nOthers: {_versions(shown)}, by `{PEERS}` (or `torch`){_inside(shown)}." if shown else ""),
    ]
    return "\n\n".join(parts)


def _table(steps: Sequence[Record], records: Sequence[Record], peers: Sequence[Record]) -> Table:
    return HEADER, [
        [
            step["model"], step["batch"], number(step["floor_ms"], ".3f"),
            f"**{step['ms_per_token']:.3f}** ({step['ms_p5']:.3f} to {step['ms_p95']:.3f})",
            number(step["percent_of_ceiling"], ".1f"), _xla(step, records),
            *(span([peer for peer in peers if peer["engine"] == engine and alike(peer, step)])
              for engine in ("torch", "vllm")),
        ]
        for step in steps
    ]  # fmt: skip


def _xla(step: Record, records: Sequence[Record]) -> str:
    beside = xla_beside(step, records)
    return number(beside["xla_ms_per_token"] if beside else None, ".3f")


def steps_of(records: Sequence[Record]) -> list[Record]:
    """The newest of each step of the kernels in bf16 at CONTEXT, its cache contiguous and as wide."""
    return [
        found
        for found in newest(records)
        if found["context"] == CONTEXT and found["dtype"] == "bf16" and found["status"] == "ok"
        and found["implementation"] != "xla" and not found["page_size"] and found["kv_dtype"] == AUTO
    ]  # fmt: skip


def alike(peer: Record, step: Record) -> bool:
    """Whether they are of the same case."""
    return all(peer[field] == step[field] for field in ("model", "dtype", "batch", "context"))


def span(peers: Sequence[Record]) -> Any:
    """What an engine took: its runs differ from day to day."""
    times = sorted(peer["ms_per_token"] for peer in peers)
    if not times:
        return "-"
    low, high = f"{times[0]:.2f}", f"{times[-1]:.2f}"
    return low if low == high else f"{low} to {high}"


def _inside(peers: Sequence[Record]) -> str:
    """Of which models vLLM's engine ran in the driver's process."""
    inside = [peer for peer in peers if peer["engine"] == "vllm" and peer["how"].endswith("in process")]
    models = sorted({peer["model"] for peer in inside})
    return f", with `--in_process` of {', '.join(models)}" if models else ""


def _versions(peers: Sequence[Record]) -> str:
    return " and ".join(sorted({f"{peer['engine']} {peer['engine_version'].split(',')[0]}" for peer in peers}))
