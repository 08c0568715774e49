"""Where the records of a table come from, in two lines: the command that makes them, and what it ran on."""

from collections.abc import Sequence

from experiments.bench.record import Record


def origin(records: Sequence[Record], command: str) -> str:
    """Two lines of Markdown; `command` makes all of the table, the records name those that did."""

    def all_of(field: str) -> list[str]:
        return sorted({str(found[field]) for found in records if found.get(field) is not None})

    parts = []
    if ceilings := sorted(found["ceiling_gbps"] for found in records if found.get("ceiling_gbps")):
        low, high = f"{ceilings[0]:.0f}", f"{ceilings[-1]:.0f}"
        parts.append(f"read ceiling {low if low == high else f'{low} to {high}'} GB/s")
    parts += [f"{name} {', '.join(all_of(name))}" for name in ("driver", "jax") if all_of(name)]
    if commits := all_of("commit"):
        parts.append(f"commit {', '.join(commit[:12] for commit in commits)}")
    if dates := [date[:10] for date in all_of("date")]:
        parts.append(dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}")
    return f"`{command}`\\\n{'; '.join(parts) or 'origin unknown'}."
