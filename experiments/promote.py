"""Writes the winners of a sweep to pallas_kernels/tuned/<device>/<op>.json.

    python -m experiments.promote RESULTS.jsonl [MORE.jsonl ...]

Only rows measured on a GPU whose numerics passed count. A winner takes the place of the incumbent (the tuned tile if
these results timed it, else the heuristic's) only where it is faster by more than the noise, 4%, in the same results.
Where `experiments.layer_tiles` tried the tiles of a case in a layer, that decides, by the same 4% of the op's own time;
of weighted rows, which come in a layer only, nothing else does.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cases, row_log, tables
from experiments.cases import Case
from experiments.options import fail
from experiments.row_log import SOFTWARE, ResultsError, Row
from experiments.rows import GPU, IN_LAYER
from pallas_kernels.common import devices
from pallas_kernels.common.devices import Device

NOISE = 0.04
TUNED = Path(__file__).resolve().parents[1] / "pallas_kernels" / "tuned"
LAYER_EVIDENCE = ("layer_us", "layer_p10_us", "layer_p90_us", "layer_tiles", "layer_context")
EVIDENCE = (
    *LAYER_EVIDENCE,
    "median_us", "p10_us", "p90_us", "samples", "achieved_gbps", "percent_of_ceiling", "ceiling_gbps", "xla_us",
    "error", "error_xla", "device", "driver", "clocks", "jax", "kernels", "commit", "dirty", "date", "command",
)  # fmt: skip


def newest(rows: Sequence[Row]) -> list[Row]:
    """The rows of a case that the same software measured on the same device as the last of them."""
    software = [tuple(row.get(field) for field in SOFTWARE) for row in rows]
    return [row for row, one in zip(rows, software) if one == software[-1]]


def fullest(rows: Sequence[Row]) -> list[Row]:
    """The rows of a case by the software, on one device, that tried the most tiles; of equal ones by the last.

    A later sweep of part of the tiles does not hide that of all.
    """
    by: dict[tuple, list[Row]] = {}
    for row in rows:
        software = tuple(row.get(field) for field in SOFTWARE)
        by[software] = [*by.pop(software, []), row]
    return max(reversed(by.values()), key=lambda found: len({str(row["tiles"]) for row in found}))


def entries_of(path: Path) -> list[dict[str, Any]]:
    """The entries of a tuned file; [] where there is none."""
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text())["entries"]
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}: expected a JSON object with 'entries' ({error})") from None


def write(path: Path, entries: list[dict[str, Any]]) -> None:
    """Replaces a tuned file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(dict(entries=entries), indent=1) + "\n")
    os.replace(temporary, path)


def decide(case: Case, rows: Sequence[Row], entry: dict[str, Any] | None, device: Device) -> tuple[Row | None, str]:
    """The row to promote, or None, and why."""
    ok = tables.timed(newest(rows))
    if not ok:
        return None, "no tile has a time"
    best = ok[0]
    tuned = entry and next((row for row in ok if row["tiles"] == entry["tiles"]), None)
    heuristic = cases.fields_of(case.tiles.default(case.shape, device))
    rival, name = tuned, "the tuned tile"
    if rival is None:
        rival, name = next((row for row in ok if row["tiles"] == heuristic), None), "the heuristic"
    if rival is None:
        if any(row["tiles"] == heuristic for row in rows):
            return best, f"{best['median_us']:.2f} us, where the heuristic does not run"
        return None, "neither the tuned tile nor the heuristic was measured"
    gain = f"{best['median_us']:.2f} us, {name} {rival['median_us']:.2f} us"
    if best["median_us"] < (1 - NOISE) * rival["median_us"]:
        return best, gain
    return None, f"{gain}: within the noise of {NOISE:.0%}"


def decide_in_layer(tried: Sequence[Row], ok: Sequence[Row]) -> tuple[Row | None, str]:
    """As `decide`, from rows of tiles in a layer: the chosen one's row in the sweep, with `layer_us`."""
    chosen = next(row for row in reversed(tried) if row["chosen"])
    rival = next(row for row in reversed(tried) if row["incumbent"])
    why = f"{chosen['layer_us']:.2f} us a layer, the incumbent {rival['layer_us']:.2f} us"
    alone = next((row for row in ok if row["tiles"] == chosen["tiles"]), None)
    if chosen["incumbent"] or alone is None:
        return None, why
    return alone | {field: chosen[field] for field in LAYER_EVIDENCE}, why


def promote(rows: Sequence[Row], device: Device, root: Path = TUNED) -> int:
    """Promotes the winners of one device's rows; returns how many entries changed, having said what became of each."""
    changed: dict[Path, list[dict[str, Any]]] = {}
    count = 0
    in_layer = tables.by_case(gpu_rows(rows, device, IN_LAYER))
    for (op, model, number, context, dtype), members in tables.by_case(gpu_rows(rows, device)).items():
        case = cases.make(op, model, rows=number, context=context or 1024, dtype=dtype)
        shape = dataclasses.asdict(case.shape)
        path = root / device.key / f"{case.function}.json"
        entries = changed.get(path) or entries_of(path)
        at = next((i for i, entry in enumerate(entries) if entry["shape"] == shape), len(entries))
        tried = in_layer.get((op, model, number, context, dtype))
        if tried:
            winner, why = decide_in_layer(newest(tried), tables.timed(newest(members)))
        elif op in cases.FUNCTIONS:
            winner, why = None, "its tiles were not tried in a layer"
        else:
            winner, why = decide(case, members, entries[at] if at < len(entries) else None, device)
        where = f"{op} {model} rows={number}" + (f" context={context}" if context else "")
        print(f"{'promoted' if winner else 'kept    '}  {where}: {why}")
        if winner is not None:
            evidence = {
                field: winner.get(field) for field in EVIDENCE if field in winner or field not in LAYER_EVIDENCE
            }
            entries[at : at + 1] = [dict(shape=shape, tiles=winner["tiles"], evidence=evidence)]
            changed[path] = entries
            count += 1
    for path, entries in changed.items():
        write(path, entries)
    return count


def gpu_rows(rows: Sequence[Row], device: Device, mode: str = GPU) -> list[Row]:
    """Rows measured on a GPU of that model, of cases that this repository still knows."""
    return [
        row
        for row in rows
        if row.get("mode") == mode
        and devices.find(row.get("device") or "") == device
        and row["op"] in cases.OPS
        and row["model"] in cases.MODELS
    ]


def main(argv: Sequence[str] | None = None) -> int:
    paths = list(sys.argv[1:] if argv is None else argv)
    if not paths or paths[0].startswith("-"):
        print(__doc__)
        return 0 if paths else 2
    try:
        rows = []
        for path in paths:
            if not Path(path).is_file():
                raise ResultsError(f"{path}: no such file")
            rows += row_log.read(path)
        found = [devices.find(row.get("device") or "") for row in rows if row.get("mode") == "gpu"]
        if not any(found):
            raise ResultsError(f"{', '.join(paths)}: no rows measured on a known GPU")
        for device in dict.fromkeys(device for device in found if device):
            promote(rows, device)
    except ResultsError as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
